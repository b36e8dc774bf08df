"""Batches of a run: which samples each step and rank takes, made ahead in the background."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from pretrain.config import Run
from pretrain.config.recipe import MACHINE
from pretrain.data.machine import machine_data
from pretrain.data.packing import Batch, PackedSamples
from pretrain.data.tokens import open_tokens
from pretrain.data.ul2 import Mixture, Special
from pretrain.errors import UserError
from tokenizer.pieces import load_tokenizer


@dataclass
class RunData:
    """The data of a run as one rank sees it."""

    run: Run
    rank: int
    """Data-parallel rank."""
    train: PackedSamples
    valid: PackedSamples
    _ahead: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="data"))
    _next: tuple[int, Future] | None = None

    def batch(self, step: int) -> list[Batch]:
        """This rank's micro-batches of a step; those of the next step are made while this one trains."""
        if self._next is not None and self._next[0] == step:
            ready = self._next[1]
        else:
            ready = self._ahead.submit(self._step, step)
        self._next = (step + 1, self._ahead.submit(self._step, step + 1)) if step < self.run.steps else None
        return ready.result()

    def held_out(self) -> list[Batch]:
        """This rank's micro-batches of an evaluation: always the same samples, whatever the layout."""
        total, layout = self.run.recipe.eval_samples, self.run.recipe.parallel
        count = -(-total // (self.run.micro_batch * self.run.data_parallel))
        if layout.virtual > 1:
            count = -(-count // layout.pipeline) * layout.pipeline  # interleaving takes them in groups
        return [self._held_out(self.run.sample(index, self.rank), total) for index in range(count)]

    def _step(self, step: int) -> list[Batch]:
        run = self.run
        first = (step - 1) * run.batch
        return [
            self.train.batch(first + run.sample(index, self.rank), run.micro_batch) for index in range(run.micro_batches)
        ]

    def _held_out(self, first: int, total: int) -> Batch:
        """Samples beyond the last one have no targets: the evaluation must not depend on how it is cut."""
        batch = self.valid.batch(first, self.run.micro_batch)
        batch.targets[max(total - first, 0) :] = False
        return batch

    def close(self) -> None:
        self._ahead.shutdown(wait=False, cancel_futures=True)


def open_data(run: Run, rank: int = 0) -> RunData:
    """Open tokenizer and token files of a run, and check that they fit together.

    Raises:
        UserError: a file is missing or damaged, or tokenizer, token files and recipe do not match.
    """
    data, model = run.recipe.data, run.recipe.model
    paths = {"tokenizer": data.tokenizer, "train": data.train, "valid": data.valid}
    if MACHINE in paths.values():
        made = machine_data(model.vocab_size)
        paths = {key: str(getattr(made, key)) if path == MACHINE else path for key, path in paths.items()}
    tokenizer = load_tokenizer(Path(paths["tokenizer"]))
    if tokenizer.vocab_size != model.vocab_size:
        raise UserError(
            f"recipe {run.name}: model.vocab_size {model.vocab_size} does not match the {tokenizer.vocab_size} pieces of "
            f"{paths['tokenizer']}; set model.vocab_size to {tokenizer.vocab_size} or choose another tokenizer"
        )
    mixture = Mixture(data.denoisers, Special.of(tokenizer, data.denoisers, data.max_example_tokens))

    def samples(key: str, seed: int) -> PackedSamples:
        stream = open_tokens(Path(paths[key]), tokenizer.vocab_size, tokenizer.sha256)
        return PackedSamples(stream, mixture, data.sequence_length, data.max_example_tokens, seed)

    valid = samples("valid", 0)
    if valid.windows < run.recipe.eval_samples:
        raise UserError(
            f"recipe {run.name}: eval_samples {run.recipe.eval_samples} exceeds the {valid.windows} samples in {paths['valid']}.bin; "
            "lower it or hold out more text"
        )
    return RunData(run, rank, samples("train", run.recipe.seed), valid)
