"""A command of `pretrain` on GPUs that compute nothing; under torchrun, on several:

    torchrun --nproc-per-node 2 -m tests.support.dry REPORT train RECIPE ...

Ranks talk for real between their CPUs (gloo); what devices would send each other goes nowhere. REPORT, a folder, gets a file of
each rank with what each step waited for and copied, from its begin to the next one's, and before the first. The last
one is left out.
"""

import json
import os
import sys
from pathlib import Path

import torch.distributed as dist
from torch.nn.functional import scaled_dot_product_attention

from tests.support.dry.backward import Walk
from tests.support.dry.device import FakeDevice, install


def main(report: Path, words: list[str]) -> int:
    os.environ["DS_ACCELERATOR"] = "cuda"
    device = install()
    Walk().install()
    join = dist.init_process_group
    dist.init_process_group = lambda backend, **how: join(backend.replace("nccl", "fake"), **how)
    from pretrain.cli.main import main as pretrain

    steps: list[dict] = []
    _count_steps(device, steps)
    _leave_out()
    with device:
        status = pretrain([*words, "--device", "cuda"])
    (report / f"rank{os.environ.get('RANK', '0')}.json").write_text(json.dumps(steps, indent=1))
    return status


def _count_steps(device: FakeDevice, steps: list[dict]) -> None:
    from pretrain.engine.engine import Engine

    begin = Engine.begin

    def counted(engine: Engine, *step: object) -> object:
        counts = device.counts
        steps.append({"waits": dict(counts.waits), "copies": dict(counts.copies), "streams": counts.streams})
        device.counts.reset()
        return begin(engine, *step)

    Engine.begin = counted


def _leave_out() -> None:
    """What needs a driver or numbers: the kernel of flex attention, and preflight's sums between devices."""
    from pretrain import train
    from pretrain.model import attention

    attention._compiled_flex = lambda q, k, v, block_mask, enable_gqa: scaled_dot_product_attention(
        q, k, v, enable_gqa=enable_gqa
    )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        train.preflight = lambda *args: None


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
