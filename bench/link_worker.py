"""One replica of bench.link and bench.timeline: steps of the engine with each number of layers, and what went over the link
meanwhile.

Run as a file, with `bench` and `pretrain` from PYTHONPATH, so that an older state of the program can be measured by it, too.
"""

import json
import os
import sys
import time
from pathlib import Path

import torch.distributed as dist

from bench.path_speed import random_batch
from pretrain.config import read_run
from pretrain.config.command_line import option_pairs
from pretrain.place import find_place

try:
    from pretrain.ranks.launch import join, launch
    from pretrain.ranks.libraries import prepare_libraries
except ModuleNotFoundError:  # as at f759c0d
    from pretrain.parallel.ranks import join, launch, prepare_libraries  # type: ignore[no-redef]

WARM_UP = 2


def main() -> None:
    recipe, ds, device, out, steps, what, *options = sys.argv[1:]
    place = find_place(os.environ)
    run = read_run(recipe, option_pairs(options), ds, place.world_size)
    prepare_libraries("cpu")
    with join("cpu", place, Path(out)) as ranks, launch(run.recipe, ranks):
        try:
            from pretrain.engine import build_engine
        except ModuleNotFoundError:
            from pretrain.parallel.engine import Engine as build_engine  # type: ignore[no-redef]

        engine = build_engine(run, ranks)
        batches = [random_batch(run, index) for index in range(run.micro_batches)]
        counter = Path(f"/sys/class/net/{device}/statistics/tx_bytes")
        found: dict[int, dict[str, list[float]]] = {}
        recorder = None
        if what == "timeline":
            from bench.timeline import Recorder

            recorder = Recorder(engine)
        step = 0
        for stage in reversed(run.method.stages):
            row = found.setdefault(stage.path_length, {"seconds": [], "bytes": []})
            for index in range(WARM_UP + int(steps)):
                step += 1
                paths = run.method.paths(stage.first_step + index)
                dist.barrier()
                if recorder is not None:
                    recorder.spans, recorder.is_on = [], True  # of the last step in the end
                sent, started = int(counter.read_text()), time.perf_counter()
                engine.step(step, batches, paths)
                dist.barrier()
                if index >= WARM_UP:
                    row["seconds"].append(time.perf_counter() - started)
                    row["bytes"].append(int(counter.read_text()) - sent)
        if ranks.is_main and recorder is not None:
            told = {"spans": recorder.spans, "layers": run.recipe.model.num_layers, "active": paths[0].length}
            (Path(out) / "timeline.json").write_text(json.dumps(told))
        if ranks.is_main:
            (Path(out) / "link.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
