"""DeepSpeed's keys that this program refuses, each with the reason: a setting that does nothing misleads."""

FORMER = "progressive_layer_drop"
"""DeepSpeed's key, until it removed it."""

NOT_PASSED_ON = "this program does not pass it on to DeepSpeed; remove it"
REMOVED = "DeepSpeed 0.19 removed it"
LAYOUT = 'the layout is set in the recipe, under "parallel"; remove it'


def _all(keys: str, reason: str) -> dict[str, str]:
    return dict.fromkeys(keys.split(), reason)


ZERO_KEYS = {
    **_all(
        "offload_param offload_optimizer cpu_offload cpu_offload_param cpu_offload_use_pin_memory",
        "offloading is not supported here; remove it",
    ),
    **_all(
        """
        use_multi_rank_bucket_allreduce compute_grad_norm load_from_fp32_weights elastic_checkpoint zenflow sub_group_size
        prefetch_bucket_size param_persistence_threshold model_persistence_threshold max_live_parameters
        max_reuse_distance gather_16bit_weights_on_model_save module_granularity_threshold use_all_reduce_for_fetch_params
        allgather_sequential stage3_gather_fp16_weights_on_model_save stage3_prefetch_bucket_size
        stage3_param_persistence_threshold stage3_max_live_parameters stage3_model_persistence_threshold
        stage3_use_all_reduce_for_fetch_params stage3_module_granularity_threshold stage3_allgather_sequential
        stage3_max_reuse_distance stage3_gather_16bit_weights_on_model_save ignore_unused_parameters legacy_stage1
        parameter_alignment zero_hpz_partition_size zero_quantized_weights zero_quantized_nontrainable_weights
        zero_quantized_gradients memory_efficient_linear pipeline_loading_checkpoint override_module_apply
        log_trace_cache_warnings enable_sanity_checks save_muon_momentum_buffer_in_memory leaf_module
        """,
        NOT_PASSED_ON,
    ),
    **_all(
        "mics_shard_size mics_hierarchical_params_gather zeropp_loco_param",
        REMOVED,
    ),
}
"""Refused keys of `zero_optimization`."""

OFF = {
    "fp16": {"enabled": False},
    "amp": {"enabled": False},
    "bfloat16": {"enabled": False},
    "offload_optimizer": {"device": "none"},
    "offload_param": {"device": "none"},
    "flops_profiler": {"enabled": False},
    "wall_clock_breakdown": False,
}
"""Keys with what says that they ask for nothing, as many files have them; so they may stand."""


def asks_for_nothing(key: str, value: object) -> bool:
    """Whether a key that is refused otherwise is switched off here."""
    if key not in OFF:
        return False
    off = OFF[key]
    return isinstance(value, dict) and off.items() <= value.items() if isinstance(off, dict) else value is off


TOP_LEVEL_KEYS = {
    "fp16": "fp16 is not supported; use bf16 or leave both out for fp32",
    FORMER: 'write "progressive_subnetwork.method" pld',  # in a file it is understood
    "managed_gradient_accumulation": "it is set by this program; remove it",
    "activation_checkpointing": 'it is set in the recipe, as "model.recompute"; remove it',
    "sequence_parallel_size": LAYOUT,
    "tensor_parallel": LAYOUT,
    "pipeline": LAYOUT,
    **_all(
        "amp sparse_attention elasticity graph_harvesting curriculum_learning eigenvalue quantize_training",
        REMOVED,
    ),
    **_all(
        "tensorboard wandb csv_monitor comet monitor_config",
        "metrics.jsonl is always written, and the recipe's log_to names dashboards (tensorboard, wandb, trackio); remove it",
    ),
    **_all(
        """
        steps_per_print dump_state disable_python_gc disable_allgather
        seq_parallel_communication_data_type prescale_gradients gradient_predivide_factor gradient_allreduce_op
        torch_autocast zero_allow_untested_optimizer zero_force_ds_cpu_optimizer wall_clock_breakdown memory_breakdown
        flops_profiler bfloat16 autotuning hybrid_engine data_efficiency checkpoint aio dataloader_drop_last log_level
        datastates_ckpt compression_training weight_quantization compile timers vocabulary_size sparse_gradients
        comms_logger use_data_before_expert_parallelism use_data_before_expert_parallel_ expert_parallel fp32_allreduce
        nebula check_overflow load_universal_checkpoint dataloader_workers
        """,
        NOT_PASSED_ON,
    ),
}
"""Refused keys of the top level."""
