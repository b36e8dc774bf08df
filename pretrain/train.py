"""The training loop. Read this first."""

from contextlib import closing

from pretrain.checkpoint.resume import resume
from pretrain.checkpoint.saver import Saver
from pretrain.config import Run
from pretrain.data.loader import open_data
from pretrain.engine import build_engine
from pretrain.observe.observer import Observer
from pretrain.options import TrainOptions
from pretrain.ranks.launch import launch
from pretrain.ranks.preflight import preflight
from pretrain.ranks.process import Ranks


def train(run: Run, options: TrainOptions, ranks: Ranks) -> int:
    """Train a run from its newest checkpoint to its end, or until it is asked to stop; returns the last step that is done and
    saved."""
    with launch(run.recipe, ranks):  # groups, device, signals
        directory = options.claim_directory(run, ranks)
        preflight(ranks, directory.path)  # are all nodes fit?
        with ranks.all_or_none():
            data = open_data(run, ranks.data_parallel_rank, ranks.needs_text)
        engine = build_engine(run, ranks)  # Megatron-Core chunks, DeepSpeed optimizer
        saver = Saver(run, engine.optimizer, ranks, directory, data.tokenizer.sha256)
        start = resume(run, saver, options.resume, options.changing)  # step 0 when there is nothing to resume
        data.start_at(start)
        with ranks.all_or_none():
            watch = Observer(run, directory.path, ranks.is_main, ranks.device, ranks.nodes, start)
        done, last = start.step, options.last_step(run)
        with closing(data), closing(watch), saver:  # ends when the newest checkpoint is on disk
            for step in range(done + 1, last + 1):
                if copies := run.method.copies(step):
                    saver.grow(start, done, copies)  # stacking and midas: a stage begins
                    watch.saved(done)
                paths = run.method.paths(step)  # which layers each part of the batch runs
                batches = data.batch(step)
                watch.data_ready()
                result = engine.step(step, batches, paths)
                watch.step(step, result, paths)
                if run.evaluates(step):
                    watch.evaluation(step, engine.evaluate(data.held_out(), run.method.whole(step)))  # all layers, always
                if run.evaluates_parts(step):
                    watch.parts(step, {name: engine.evaluate(data.held_out(), part) for name, part in run.parts.items()})
                stop = ranks.asked_to_stop()  # a signal reached some rank
                saver.check()  # what was begun some steps ago may be done, or have failed
                if run.saves(step) or stop or step == last:
                    saver.begin(run.position(start, step), result.lr)  # is written while training continues
                    watch.saved(step)
                done = step
                if stop:
                    break
        watch.ended(done)
        return done
