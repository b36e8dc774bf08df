"""What DeepSpeed is given beyond the user's JSON."""

from deepspeed.runtime.config import DeepSpeedConfig as Theirs

from pretrain.optim.settings import deepspeed_json


def test_no_timer_waits_for_the_gpu_before_every_micro_batch(project):
    """Read by DeepSpeed itself: a key that it does not know would be ignored."""
    theirs = Theirs(deepspeed_json(project.run().ds))
    assert theirs.timers_config.enabled is False
    assert Theirs({"train_batch_size": 1}).timers_config.enabled is True, "its own choice"
