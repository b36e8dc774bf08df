"""The training loop. Read this first."""

from collections.abc import Sequence
from contextlib import closing
from functools import partial

from pretrain.checkpoint.resume import resume
from pretrain.checkpoint.saver import Saver
from pretrain.config import Run
from pretrain.data.loader import RunData, open_data
from pretrain.engine import Engine, build_engine
from pretrain.engine.agreement import Outcome
from pretrain.evaluate.in_training import TasksInTraining
from pretrain.hugging_face.begin import begin_with_weights
from pretrain.observe.observer import Observer
from pretrain.observe.profile import Profiler
from pretrain.options import TrainOptions
from pretrain.plan.warnings import report_warnings
from pretrain.ranks.garbage import collected_between_steps
from pretrain.ranks.launch import launch
from pretrain.ranks.preflight import preflight
from pretrain.ranks.process import Ranks
from pretrain.subnetwork import LayerPath


def train(run: Run, options: TrainOptions, ranks: Ranks) -> int:
    """Train a run from its newest checkpoint to its end, or until it is asked to stop; returns the last step that is done and
    saved."""
    with launch(run.recipe, ranks):  # groups, device, signals
        directory = options.claim_directory(run, ranks)
        ranks.on_main(lambda: report_warnings(run, directory.path))
        preflight(ranks, directory.path)  # are all nodes fit?
        with ranks.all_or_none():
            data = open_data(run, ranks.data_parallel_rank, ranks.needs_text)
        engine = build_engine(run, ranks)  # Megatron-Core chunks, DeepSpeed optimizer
        saver = Saver(run, engine.optimizer, ranks, directory, ranks.on_main(data.checksums))
        begin = partial(begin_with_weights, run, data.tokenizer, saver.state, ranks)  # of Hugging Face's, if it names some
        start = resume(run, saver, options.resume, options.changing, begin)  # step 0 when there is nothing to resume
        data.start_at(start)
        with ranks.all_or_none():
            tasks = TasksInTraining.open(run, data.tokenizer)
            watch = Observer(run, directory.path, ranks.is_main, ranks.device, ranks.nodes, start)
        done, last = start.step, options.last_step(run)
        begun = Begun(watch, options.profiler(directory.path, ranks), ahead=ranks.device.type == "cuda")
        # Ends when the newest checkpoint is on disk.
        with closing(data), closing(watch), closing(begun), collected_between_steps() as collect, saver:
            if ranks.on_main(watch.lacks_evaluation):  # the run ended between a checkpoint and the evaluation of its step
                _evaluate(start.step, run, engine, data, watch, tasks)
            if last == 0 and start.checkpoint is None:
                saver.begin(start, begun.lr)  # what the run begins with
            for step in range(done + 1, last + 1):
                if copies := run.method.copies(step):
                    begun.finish()
                    saver.grow(start, done, copies)  # stacking and midas: a stage begins
                    watch.saved(done)
                paths = run.method.paths(step)  # which layers each part of the batch runs
                batches = data.batch(step)
                watch.data_ready()
                begun.before(step)
                begun.add(engine.begin(step, batches, paths), paths)
                collect(step)
                stop = ranks.asked_to_stop()  # a signal reached some rank
                saver.check()  # what was begun some steps ago may be done, or have failed
                if run.saves(step) or run.evaluations(step) or stop or step == last:
                    begun.finish()
                if run.saves(step) or stop or step == last:
                    saver.begin(run.position(start, step), begun.lr)  # is written while training continues
                    watch.saved(step)
                done = step
                _evaluate(step, run, engine, data, watch, tasks)  # if it is time; after the save, which it cannot cost then
                if stop:
                    break
        watch.ended(done)
        return done


class Begun:
    """Steps whose results have not been read: on a GPU the last one, so that the next is made ready while it computes."""

    def __init__(self, watch: Observer, profiler: Profiler | None, ahead: bool) -> None:
        self.watch, self.profiler, self.ahead, self.lr = watch, profiler, ahead, 0.0
        self._steps: list[tuple[Outcome, Sequence[LayerPath]]] = []

    def before(self, step: int) -> None:
        """Called before a step is begun."""
        if self.profiler is not None:
            self.profiler.before(step)

    def add(self, outcome: Outcome, paths: Sequence[LayerPath]) -> None:
        """Wait for the step before, or, on a CPU, where nothing computes beside it, for this one."""
        self._steps.append((outcome, paths))
        self._read(left=int(self.ahead))
        if self.profiler is not None:
            self.profiler.after(outcome.step)

    def finish(self) -> None:
        """Wait for all of them."""
        self._read(left=0)

    def close(self) -> None:
        """Whatever ended the loop."""
        if self.profiler is not None:
            self.profiler.close()

    def _read(self, left: int) -> None:
        while len(self._steps) > left:
            outcome, paths = self._steps.pop(0)
            result = outcome.read()
            self.lr = result.lr
            self.watch.step(outcome.step, result, paths)


def _evaluate(step: int, run: Run, engine: Engine, data: RunData, watch: Observer, tasks: TasksInTraining) -> None:
    """Measure what is due after `step`: losses on held-out text with all layers, with parts of them, and tasks."""
    if run.evaluates(step):
        watch.evaluation(step, engine.evaluate(data.held_out(), run.method.whole(step)))
    if run.evaluates_parts(step):
        losses = {name: engine.evaluate(data.held_out(), part) for name, part in run.parts.items()}
        watch.parts(step, losses, engine.agreement(data.held_out(), run.method.whole(step), run.parts))
    if run.evaluates_tasks(step):
        watch.tasks(step, *tasks.measure(engine, run.method.whole(step)))
