"""What `plan` warns of: what can run, but probably should not."""

import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

from pretrain.config import Run
from pretrain.job.log import write_line
from pretrain.plan.balance import spread
from pretrain.plan.cost import USABLE, Cluster, fits
from pretrain.plan.memory import GIB, rank_memory
from pretrain.plan.target import Offer, Refused, as_raptr, fixed_layers
from pretrain.subnetwork.methods.independent import Independent
from pretrain.subnetwork.methods.raptr import Raptr

PAPERS_MOST = 1.33
"""Times fewer layer operations, of BERT (arXiv 2402.05913)."""
UNBALANCED = 1.02
"""Active layers of the busiest pipeline rank over the mean beyond which `plan` warns."""
UNEVEN = Fraction(1, 4)
"""Relative distance of a layer's probability from the uniform one beyond which `plan` warns."""


def warnings(run: Run) -> Iterator[str]:
    """What can run, but probably should not."""
    yield from run.notices
    layers, method = run.recipe.model.num_layers, run.method
    for stage in method.stages if isinstance(method, Raptr) else ():
        keep = method.keep(stage.first_step, stage.last_step)
        free = [(layer, p) for layer, p in enumerate(keep) if p != 1]
        if not free:
            continue
        fixed = layers - len(free)
        even = Fraction(stage.path_length - fixed, len(free))
        far = [layer for layer, p in free if abs(p - even) > UNEVEN * even]
        if far:
            yield (
                f"stage {stage.index}: layers {far} run with probability {float(keep[far[0]]):.2f}, while "
                f"{float(even):.2f} would be even; balance_groups or fixed_layers make the groups unequal"
            )
    yield from _independent_draws(run)
    yield from _balance(run)
    yield from _unknown_tokenizers(run)
    warm_up = run.ds.scheduler.params.warmup_num_steps if run.ds.scheduler else 0
    if warm_up >= run.steps:
        yield (
            f"the learning rate warms up for {warm_up} steps, and the run has {run.steps}, so that it never reaches its top;"
            " lower scheduler.params.warmup_num_steps"
        )
    if method.name == "raptr" and method.stages[-1].path_length < layers:
        yield f"the last stage runs {method.stages[-1].path_length} of {layers} layers; RaPTr ends with the full model"


def _unknown_tokenizers(run: Run) -> Iterator[str]:
    """Token files of other tools have no manifest, and those of this project may have lost theirs."""
    for source in run.recipe.data.all_sources:
        for prefix in (source.train, source.valid):
            if prefix is not None and Path(f"{prefix}.idx").is_file() and not Path(f"{prefix}.json").is_file():
                yield (
                    f"{prefix}.json is not there, so that nothing says whether these tokens are pieces of data.tokenizer; encode"
                    " again, or make sure of it"
                )


def report_warnings(run: Run, run_dir: Path) -> None:
    """Print what `plan` warns of, and note it in the story of a job that has one, once for all its starts."""
    log = run_dir / "job.log"
    noted = log.read_text(errors="replace") if log.is_file() else ""
    for text in warnings(run):
        if text in run.notices:
            continue
        line = f"warning: {text}"
        if "SLURM_JOB_ID" in os.environ and line not in noted:
            write_line(run_dir, line)
        else:
            print(line, flush=True)


def room_warnings(run: Run, cluster: Cluster) -> Iterator[str]:
    memory = {rank: rank_memory(run, rank).total / GIB for rank in range(run.recipe.parallel.pipeline)}
    fullest = max(memory, key=memory.__getitem__)
    if not fits(memory[fullest], cluster):
        yield (
            f"pipeline rank {fullest} needs about {memory[fullest]:.1f} GiB, and of a {cluster.gpu_name}'s"
            f" {cluster.gpu.memory_gib} GiB {100 * USABLE:.0f} % can be used; more ranks, a higher zero stage, smaller"
            " micro-batches, --model.recompute layer or smaller zero_optimization buckets need less; --suggest looks for a"
            " layout"
        )


def _independent_draws(run: Run) -> Iterator[str]:
    """Replicas that run different paths at a time wait for the longest."""
    method = run.method
    at_once = min(run.data_parallel, len(method.paths(run.steps)))
    bernoulli = isinstance(method, Raptr) and any(scheme.sampler == "bernoulli" for scheme in method.schemes.values())
    if not (isinstance(method, Independent) or bernoulli) or at_once == 1:
        return
    for stage in run.method.stages:
        keep = [float(p) for p in run.method.keep(stage.first_step, stage.last_step)]
        mean, longest = sum(keep), expected_longest(keep, at_once)
        if longest > 1.05 * mean:
            yield (
                f"stage {stage.index}: paths are drawn independently, and the longest of {at_once} at a time has about "
                f"{longest:.1f} layers where the mean is {mean:.3g}; the slowest replica sets the pace"
                + (", exact and balanced avoid it" if isinstance(run.method, Raptr) else "; fewer paths_per_step lessen it")
            )


def expected_longest(keep: list[float], draws: int) -> float:
    """Expected length of the longest of `draws` independent paths whose layers are kept with these probabilities."""
    chance = [1.0]
    for p in keep:
        chance = [a * (1 - p) + b * p for a, b in zip([*chance, 0.0], [0.0, *chance])]
    below = [sum(chance[: length + 1]) ** draws for length in range(len(chance))]
    return sum(1 - share for share in below[:-1])


def _balance(run: Run) -> Iterator[str]:
    """Pipeline ranks are equally busy in every step if they own whole groups of a balanced sampler, and the groups are alike."""
    p = run.recipe.parallel
    if p.pipeline == 1 or run.method.name == "full":
        return
    uneven = {stage.index: spread(run, stage).busiest(p.pipeline) for stage in run.method.stages}
    worst = max(uneven, key=uneven.__getitem__)
    if uneven[worst] > UNBALANCED:
        mend = (
            f'; use "sampler": "balanced" with balance_groups a multiple of {p.pipeline} that divides the path lengths'
            if isinstance(run.method, Raptr)
            else ""
        )
        yield (
            f"paths are not balanced over {p.pipeline} pipeline ranks: in stage {worst} the busiest one runs {uneven[worst]:.2f}"
            f" times the mean, and sets the pace{mend}"
        )


def target_warnings(proposed: Sequence[Offer | Refused], target: float) -> Iterator[str]:
    """What hurts about the first offer, and what keeps others from running."""
    yield from (f"{refused.what} cannot run so: {refused.why}" for refused in proposed if isinstance(refused, Refused))
    first = proposed[0]
    if isinstance(first, Refused):
        return
    layers, lengths = first.run.recipe.model.num_layers, first.lengths
    if abs(first.layer_factor / target - 1) > 0.02:
        yield f"no schedule of whole layers comes nearer to {target:g} than {first.layer_factor:.2f}"
    fixed = fixed_layers(as_raptr(first.run.ds.progressive_subnetwork))
    if bare := [stage.index for stage in first.run.method.stages if stage.path_length == fixed < layers]:
        yield (
            f"in stage{'s' * (len(bare) > 1)} {', '.join(map(str, bare))} the {fixed} fixed layers alone would run: the others"
            " would not be trained there"
        )
    if lengths[0] < layers / 2:
        yield (
            f"the first stage would run {lengths[0]} of {layers} layers; the paper's schedules begin with half or more, and less"
            " is untested"
        )
    if target > PAPERS_MOST:
        yield f"the paper reports {PAPERS_MOST:g} times fewer layer FLOPs at most; what more costs in loss is not known"
    for warning in warnings(first.run):
        if warning not in first.run.notices:
            yield f"with {first.what}: {warning}"
