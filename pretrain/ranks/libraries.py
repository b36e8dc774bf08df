"""What the libraries read when they are imported; call this before anything imports DeepSpeed or Megatron-Core."""

import logging
import os
import warnings

from pretrain.ranks.caches import prepare_caches
from pretrain.ranks.device import DeviceType


def prepare_libraries(device: DeviceType) -> None:
    """Set what DeepSpeed reads at import, and silence notices that say nothing to a user of this program."""
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists, also where no launcher set it
    prepare_caches()
    warnings.filterwarnings("ignore", module=r"megatron\.")
    # Megatron-Core and DeepSpeed use these; the new names came with torch 2.13, and this program supports 2.11.
    warnings.filterwarnings("ignore", "`torch.distributed.*deprecated", FutureWarning)
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
