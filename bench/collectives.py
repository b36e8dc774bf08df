"""Do the collectives that training uses give right sums, and how fast are they here?

    torchrun --standalone --nproc-per-node 2 -m bench.collectives [--out FILE.json]

Over all ranks, and over those of each node, where that is something else. Bandwidth is counted as by nccl-tests: bytes that each
link must carry at least, over the median time.
"""

import argparse
import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from bench.path_speed import timed
from pretrain.place import find_place
from pretrain.ranks.device import device_type
from pretrain.ranks.launch import join
from pretrain.ranks.libraries import prepare_libraries
from pretrain.ranks.process import Ranks
from pretrain.versions import device_name

SIZES = {"cpu": (2**16, 2**22), "cuda": (2**16, 2**22, 2**28)}
"""Bytes."""
ROUNDS = 7


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, default=Path("collectives.json"))
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    args = parser.parse_args()
    place = find_place(os.environ)
    os.environ.update(place.environment)
    prepare_libraries(device_type(args.device))
    with join(args.device, place, args.out.absolute().parent) as ranks:
        on_gpu = ranks.device.type == "cuda"
        if on_gpu:
            torch.cuda.set_device(ranks.device)
        rows = [row for name, group in groups(ranks).items() for row in measure(ranks, name, group)]
        if ranks.is_main:
            device = device_name(ranks.device.type)
            nccl = ".".join(map(str, torch.cuda.nccl.version())) if on_gpu else None
            args.out.write_text(json.dumps({"device": device, "nccl": nccl, "nodes": ranks.nodes, "rows": rows}, indent=1) + "\n")
            print("\n".join(in_words(row) for row in rows))


def groups(ranks: Ranks) -> dict[str, dist.ProcessGroup]:
    """All ranks; and this node's, if there are several nodes with several ranks each."""
    assert dist.group.WORLD is not None, "torch.distributed is up"
    found = {"all ranks": dist.group.WORLD}
    by_node = {node: [rank for rank, where in enumerate(ranks.nodes) if where == node] for node in dict.fromkeys(ranks.nodes)}
    if len(by_node) > 1 and all(len(members) > 1 for members in by_node.values()):
        made = {node: dist.new_group(members) for node, members in by_node.items()}  # every rank takes part in making every group
        found["ranks of a node"] = made[ranks.nodes[ranks.rank]]
    return found


def measure(ranks: Ranks, name: str, group: dist.ProcessGroup) -> list[dict]:
    """A row for every operation and size.

    Raises:
        RuntimeError: an operation gives something wrong.
    """
    count, me = dist.get_world_size(group), dist.get_rank(group)
    rows = []
    for size in SIZES[ranks.device.type]:
        length = size // 4 // count * count
        whole, part = torch.empty(length, device=ranks.device), torch.empty(length // count, device=ranks.device)
        calls: dict[str, tuple[Callable[[], object], Callable[[], bool], float]] = {
            # what to call, whether its result is right, share of the bytes that each link carries
            "all_reduce": (
                lambda: dist.all_reduce(whole, group=group),
                lambda: bool((whole == count * (count + 1) / 2).all()),
                2 * (count - 1) / count,
            ),
            "all_gather": (
                lambda: dist.all_gather_into_tensor(whole, part, group=group),
                lambda: bool((whole[:: length // count] == torch.arange(1.0, count + 1, device=whole.device)).all()),
                (count - 1) / count,
            ),
            "reduce_scatter": (
                lambda: dist.reduce_scatter_tensor(part, whole, group=group),
                lambda: bool((part == count * (count + 1) / 2).all()),
                (count - 1) / count,
            ),
        }
        for operation, (call, is_right, share) in calls.items():
            seconds = []
            for _ in range(ROUNDS):
                whole.fill_(me + 1)
                part.fill_(me + 1)
                seconds.append(timed(call, ranks.device))
            if not is_right():
                raise RuntimeError(f"{operation} of {size} bytes over {name}: wrong result on rank {ranks.rank}")
            took = statistics.median(seconds)
            rows.append(
                {
                    "group": name,
                    "ranks": count,
                    "operation": operation,
                    "bytes": size,
                    "seconds": took,
                    "gigabytes_per_second": share * size / took / 1e9,
                }
            )
    return rows


def in_words(row: dict) -> str:
    return (
        f"{row['group']} ({row['ranks']})  {row['operation']:<14}  {row['bytes'] / 2**20:8.3f} MiB  {row['seconds'] * 1e3:8.3f}"
        f" ms  {row['gigabytes_per_second']:7.2f} GB/s"
    )


if __name__ == "__main__":
    main()
