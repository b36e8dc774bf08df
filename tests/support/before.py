"""One rank of a run that commit f759c0d has made, too; started by torchrun from tests/system/test_lazy.py.

torchrun --standalone --nproc-per-node 2 -m tests.support.before OUT.json

before.json holds what came out there, where every step summed, updated and gathered all layers: loss and gradient norm of each
step, and the options of this run. It was made by this file with f759c0d's names of the same things, which bench/link_worker.py
has, too.
"""

import json
import os
import sys
from pathlib import Path

from bench.path_speed import HOME, random_batch
from pretrain.config import read_run
from pretrain.config.command_line import option_pairs
from pretrain.place import find_place
from pretrain.ranks.launch import join, launch
from pretrain.ranks.libraries import prepare_libraries

BEFORE = json.loads(Path(__file__).with_suffix(".json").read_text())


def main() -> None:
    out = Path(sys.argv[1])
    place = find_place(os.environ)
    run = read_run(
        str(HOME / "path_speed.yaml"), option_pairs(BEFORE["options"]), str(HOME / "path_speed.json"), place.world_size
    )
    prepare_libraries("cpu")
    with join("cpu", place, out.parent) as ranks, launch(run.recipe, ranks):
        from pretrain.engine import build_engine

        engine, rows = build_engine(run, ranks), []
        for step in range(1, run.steps + 1):
            first = 1000 * step + 10 * ranks.data_parallel_rank
            batches = [random_batch(run, first + index, targets=0.5) for index in range(run.micro_batches)]
            result = engine.step(step, batches, run.method.paths(step))
            rows.append([result.loss, result.grad_norm])
        if ranks.is_main:
            out.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
