"""The training loop. Read this first."""

from pretrain.checkpoint.state import resume, save
from pretrain.config import Run
from pretrain.data.loader import open_data
from pretrain.observe.observer import Observer
from pretrain.options import TrainOptions
from pretrain.parallel.engine import Engine
from pretrain.parallel.ranks import Ranks, launch


def train(run: Run, options: TrainOptions, ranks: Ranks) -> None:
    """Train a run from wherever it stands to its end, or until it is asked to stop."""
    with launch(run.recipe, ranks):  # groups, device, signals
        directory = options.claim_directory(run, ranks)
        data = ranks.together(lambda: open_data(run, ranks.data_parallel_rank, ranks.needs_text))
        engine = Engine(run, ranks)  # Megatron-Core chunks, DeepSpeed optimizer
        done = resume(run, engine, directory, options.resume)  # 0 when there is nothing to resume
        watch = ranks.together(lambda: Observer(run, directory.path, ranks.is_main, ranks.device, done))
        last = options.last_step(run)
        try:
            for step in range(done + 1, last + 1):
                paths = run.method.paths(step)  # which layers each part of the batch runs
                batches = data.batch(step)
                watch.data_ready()
                result = engine.step(step, batches, paths)
                watch.step(step, result, paths)
                if run.evaluates(step):
                    watch.evaluation(step, engine.evaluate(data.held_out()))  # all layers, always
                stop = ranks.agree(ranks.stop_requested)  # a signal reached some rank
                if run.saves(step) or stop or step == last:
                    save(run, engine, directory, step)
                    watch.saved(step)
                done = step
                if stop:
                    break
            watch.ended(done)
        finally:
            data.close()
            watch.close()
