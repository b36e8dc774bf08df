"""Batches of a run: which samples each step and rank takes, made ahead in the background."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from pretrain.config import Run
from pretrain.config.recipe import MACHINE, Source
from pretrain.config.run import Position
from pretrain.data.batch import Batch
from pretrain.data.blend import Blend
from pretrain.data.identity import TOKENIZER, checksum
from pretrain.data.installed_docs import machine_data
from pretrain.data.packing import PackedSamples
from pretrain.data.tokens import TokenStream, open_tokens
from pretrain.errors import UserError
from pretrain.hashing import stable_hash
from tokenizer.load import load_tokenizer
from tokenizer.pieces import Tokenizer


@dataclass
class RunData:
    """The data of a run as one rank sees it."""

    run: Run
    rank: int
    """Data-parallel rank."""
    train: Blend
    valid: Blend
    tokenizer: Tokenizer
    with_text: bool = True
    """False between the first and the last pipeline rank, which need the tables of examples alone."""
    start: Position = Position()
    """Where training resumes."""
    _ahead: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="data"))
    _next: tuple[int, Future] | None = None

    def start_at(self, start: Position) -> None:
        """Samples count from where they were left, whatever size batches had until then."""
        assert self._next is None, "batches are being made"
        self.start = start

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
        return [self._held_out(self.run.batching.first_sample(index, self.rank), total) for index in range(count)]

    def checksums(self) -> dict[str, str]:
        """Return checksums of the tokenizer and of every token file, by the setting that names it."""
        found, data = {TOKENIZER: self.tokenizer.sha256}, self.run.recipe.data
        for source in sources_of(self.run):
            where = f"data.sources.{source.name}" if data.sources else "data"
            for part, prefix in (("train", source.train), ("valid", source.valid)):
                if prefix is not None:
                    found[f"{where}.{part}"] = checksum(Path(prefix))
        return found

    def _step(self, step: int) -> list[Batch]:
        run = self.run
        first = run.position(self.start, step - 1).samples
        return [
            self.train.batch(first + run.batching.first_sample(index, self.rank), run.micro_batch, self.with_text)
            for index in range(run.micro_batches)
        ]

    def _held_out(self, first: int, total: int) -> Batch:
        """Samples beyond the last one have no targets: the evaluation must not depend on how it is cut."""
        batch = self.valid.batch(first, self.run.micro_batch, self.with_text)
        batch.targets[max(total - first, 0) :] = False
        return batch

    def close(self) -> None:
        self._ahead.shutdown(wait=False, cancel_futures=True)


def open_data(run: Run, rank: int = 0, with_text: bool = True) -> RunData:
    """Open tokenizer and token files of a run, and check that they fit together.

    Raises:
        UserError: a file is missing or damaged, or tokenizer, token files and recipe do not match.
    """
    data, sources = run.recipe.data, sources_of(run)
    tokenizer = tokenizer_of(run)
    objective = data.made_as.open(data, tokenizer)
    streams = [_train_and_valid(source, data.valid_share, tokenizer) for source in sources]

    def blend(part: int, seed: int) -> Blend:
        own_seeds = [stable_hash(seed, index) >> 1 for index in range(len(streams))]  # or sources would draw alike
        samples = tuple(
            PackedSamples(both[part], objective, data.sequence_length, own, tokenizer.vocab_size)
            for both, own in zip(streams, own_seeds)
        )
        return Blend(samples, tuple(source.weight for source in sources), seed, len(data.kinds) // len(sources))

    _require_sample_held_out(run, sources, streams)
    valid = blend(1, 0)
    _require_enough(run, valid)
    train = blend(0, run.recipe.seed)
    _require_targets(run, "held-out text", valid, run.recipe.eval_samples)
    _require_targets(run, "text to train on", train, run.batching.batch_size)
    return RunData(run, rank, train, valid, tokenizer, with_text)


def held_out_samples(run: Run) -> int:
    """Return how many samples of the run's only source are held out.

    Raises:
        UserError: a file is missing or damaged, or does not match the tokenizer.
    """
    ((_, valid),) = streams_of(run).values()
    return len(valid) // run.recipe.data.sequence_length - 1  # as PackedSamples.windows


def sources_of(run: Run) -> tuple[Source, ...]:
    """Return where the text of a run is; what the machine makes is made."""
    sources = run.recipe.data.all_sources
    if MACHINE not in (path for source in sources for path in (source.train, source.valid)):
        return sources
    made = machine_data(run.recipe.model.vocab_size)
    return tuple(_with_machine_paths(source, str(made.train), str(made.valid)) for source in sources)


def streams_of(run: Run) -> dict[str, tuple[TokenStream, TokenStream]]:
    """Return the text of each source of a run, by its name: what is trained on, and what is held out."""
    tokenizer, share = tokenizer_of(run), run.recipe.data.valid_share
    return {source.name: _train_and_valid(source, share, tokenizer) for source in sources_of(run)}


def tokenizer_of(run: Run) -> Tokenizer:
    """The recipe's tokenizer, opened.

    Raises:
        UserError: it is missing, damaged, or of another size than the recipe says.
    """
    vocab_size, folder = run.recipe.model.vocab_size, run.recipe.data.tokenizer
    tokenizer = load_tokenizer(machine_data(vocab_size).tokenizer if folder == MACHINE else Path(folder), vocab_size)
    if tokenizer.vocab_size != vocab_size:
        counts, own = f"{tokenizer.vocab_size}", tokenizer.own_pieces
        if own < tokenizer.vocab_size:
            counts += f", or {own} without the pieces of UL2 and BERT,"
        raise UserError(
            f"recipe {run.name}: model.vocab_size {vocab_size} does not match the {tokenizer.vocab_size} pieces of "
            f"{tokenizer.directory}; set model.vocab_size to {counts} or choose another tokenizer"
        )
    return tokenizer


def _with_machine_paths(source: Source, train: str, valid: str) -> Source:
    paths = {
        "train": train if source.train == MACHINE else source.train,
        "valid": valid if source.valid == MACHINE else source.valid,
    }
    return source.model_copy(update=paths)


def _train_and_valid(source: Source, valid_share: float, tokenizer: Tokenizer) -> tuple[TokenStream, TokenStream]:
    stream = open_tokens(Path(source.train), tokenizer.vocab_size, tokenizer.sha256)
    if source.valid is None:
        return stream.split(valid_share)
    return stream, open_tokens(Path(source.valid), tokenizer.vocab_size, tokenizer.sha256)


def _require_sample_held_out(run: Run, sources: Sequence[Source], streams: Sequence[tuple[TokenStream, TokenStream]]) -> None:
    """Check that a share which is held out holds a sample; files of their own say so of themselves."""
    data = run.recipe.data
    for source, (train, valid) in zip(sources, streams):
        if source.valid is None and len(valid) < 2 * data.sequence_length:
            raise UserError(
                f"recipe {run.name}: of the {len(train) + len(valid)} tokens of {valid.prefix}.bin data.valid_share"
                f" {data.valid_share} holds out {len(valid)}, and samples of {data.sequence_length} need"
                f" {2 * data.sequence_length}; raise the share, give data.valid, or lower data.sequence_length"
            )


def _require_enough(run: Run, valid: Blend) -> None:
    """An evaluation shows no sample twice."""
    needed = [0] * len(valid.sources)
    for sample in range(run.recipe.eval_samples):
        needed[valid.place(sample)[0]] += 1
    for samples, count in zip(valid.sources, needed):
        if samples.windows < count:
            raise UserError(
                f"recipe {run.name}: eval_samples {run.recipe.eval_samples} takes {count} samples of {samples.stream.prefix}.bin,"
                f" and {samples.windows} are held out there; lower it, or hold out more text (data.valid_share, data.valid)"
            )


def _require_targets(run: Run, what: str, blend: Blend, samples: int) -> None:
    """Check that something is to be predicted in the first samples; documents of one token have nothing."""
    if not any(blend.batch(sample, 1).targets.any() for sample in range(samples)):
        files = ", ".join(f"{source.stream.prefix}.bin" for source in blend.sources)
        raise UserError(
            f"recipe {run.name}: the {what} in {files} has no token to predict in its first {samples} samples; are its documents"
            " too short? Encode whole texts as documents"
        )
