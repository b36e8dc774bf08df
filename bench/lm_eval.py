"""Are scores those of lm-eval, and how much sooner are they there? One exported model, the same documents, one CPU thread.

    python -m bench.lm_eval RUN --data DIR --tasks arc_easy piqa --lm-eval .venv-lm-eval/bin/python

lm-eval is in an environment of its own, requirements/lm_eval.txt; it reads causally, as exports do, and so do we here.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.arguments import positive
from pretrain.errors import UserError
from pretrain.place import alone, find_place

YAML = {
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "piqa": "piqa/piqa.yaml",
    "sciq": "sciq/sciq.yaml",
    "lambada": "lambada/lambada_openai.yaml",
    "boolq": "super_glue/boolq/default.yaml",
    "cb": "super_glue/cb/default.yaml",
    "rte": "super_glue/rte/default.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "winogrande": "winogrande/default.yaml",
}
"""Tasks that both have in the same format, and where lm-eval has them."""
LM_EVAL = "0.4.13"
THREADS = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


@dataclass(frozen=True)
class Compared:
    """Both programs' answers to the same documents."""

    documents: int
    requests: int
    farthest: float
    """Largest difference of a log-likelihood, nats."""
    same_answers: bool
    """Whether both find each document right, or both wrong."""
    seconds: float
    their_seconds: float

    @property
    def ratio(self) -> float:
        """Requests a second, ours over theirs."""
        return self.their_seconds / self.seconds


def compare(run: Path, tasks: Sequence[str], data: Path, limit: int, python: Path, batch_size: int) -> dict[str, Compared]:
    """Put tasks to a run's newest checkpoint and to its export.

    Returns:
        By task, and "all" of them together, which alone has times.
    """
    place = find_place(os.environ)
    from pretrain.ranks.libraries import prepare_libraries

    prepare_libraries("cpu")
    from pretrain.config.recipe import Parallel
    from pretrain.evaluate.catalogue import FromData, catalogue, choose
    from pretrain.evaluate.load import loaded
    from pretrain.evaluate.measure import Asking, outcome
    from pretrain.evaluate.requests import score
    from pretrain.export.huggingface import export
    from pretrain.ranks.launch import join

    asking = Asking(limit, 1, 0, "causal", None)
    with tempfile.TemporaryDirectory() as home, join("cpu", place, Path.cwd()) as ranks:
        with loaded(run, Parallel(), ranks) as model:
            length = model.run.recipe.data.sequence_length
            begin, posed = time.perf_counter(), {}
            for task in choose(tasks, catalogue(model.run, data), data):
                assert isinstance(task.questions, FromData)
                posed[task.name] = (task, task.questions.posed(asking, model.tokenizer, length)[0])
            requests = [request for _, each in posed.values() for one in each for request in one.requests]
            scores = iter(score(model.engine, requests, 0, both_ways=False))
            ours = {name: [[next(scores) for _ in one.requests] for one in each] for name, (_, each) in posed.items()}
            seconds = time.perf_counter() - begin
        export(run, Path(home) / "hf")
        asked: dict[str, dict[str, str]] = {}
        for name, (task, each) in posed.items():
            assert isinstance(task.questions, FromData) and task.file is not None
            asked[name] = {"yaml": YAML[name], "file": str(_rows(task.file, [one.number for one in each], Path(home) / name))}
        theirs = _ask(python, {"model": str(Path(home) / "hf"), "batch_size": batch_size, "tasks": asked}, Path(home))
    found = {}
    for name, (task, each) in posed.items():
        right = outcome(each, ours[name], 0, task.average).values
        accuracy = right.get("accuracy", right["greedy"]).tolist()
        samples = theirs["samples"][name]
        pairs = [
            (score.log_likelihood, other[0])
            for scores_, sample in zip(ours[name], samples, strict=True)
            for score, other in zip(scores_, sample["scores"], strict=True)
        ]
        farthest = max(abs(mine - other) for mine, other in pairs)
        same = accuracy == [sample["accuracy"] for sample in samples]
        found[name] = Compared(len(each), len(pairs), farthest, same, 0.0, 0.0)
    found["all"] = Compared(
        sum(one.documents for one in found.values()), len(requests), max(one.farthest for one in found.values()),
        all(one.same_answers for one in found.values()), seconds, theirs["seconds"],
    )  # fmt: skip
    return found


def _rows(file: Path, numbers: Sequence[int], to: Path) -> Path:
    """Write those documents of a file that were put to the model, for lm-eval to read."""
    from tokenizer.files import records_of

    rows = list(records_of(file))
    out = to.with_suffix(".jsonl")
    out.write_text("".join(json.dumps(rows[number - 1]) + "\n" for number in numbers))
    return out


def _ask(python: Path, asked: Mapping[str, object], home: Path) -> dict:
    (home / "asked.json").write_text(json.dumps(asked))
    worker = Path(__file__).with_name("lm_eval_worker.py")
    environment = {**alone(os.environ), **THREADS, "HF_HOME": str(home / "cache")}
    environment.pop("PYTHONPATH", None)
    words = [str(python), "-P", str(worker), str(home / "asked.json"), str(home / "out.json")]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{python}: lm-eval failed: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")
    return json.loads((home / "out.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of the tasks' data")
    parser.add_argument("--tasks", nargs="+", default=["arc_easy", "piqa", "sciq", "lambada"], choices=list(YAML))
    parser.add_argument("--limit", type=positive, default=250, help="documents of a task; 250")
    parser.add_argument("--batch-size", type=positive, default=32, help="of lm-eval; 32")
    parser.add_argument("--lm-eval", type=Path, default=Path(".venv-lm-eval/bin/python"), metavar="PYTHON")
    parser.add_argument("--out", type=Path, default=Path("bench/results"), metavar="DIR")
    args = parser.parse_args()
    if not args.lm_eval.exists():
        raise SystemExit(f"error: {args.lm_eval}: no such file; `make .venv-lm-eval/installed` installs lm-eval there")
    try:
        found = compare(args.run, args.tasks, args.data, args.limit, args.lm_eval, args.batch_size)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    from pretrain.versions import device_name

    whole = found["all"]
    lines = [
        "# Scores against lm-eval's",
        "",
        f"`-m bench.lm_eval RUN --data DIR --limit {args.limit}`, lm-eval {LM_EVAL}, batches of {args.batch_size}, one thread"
        f" each; {device_name('cpu')}.",
        "",
        "| task | documents | requests | farthest log-likelihood, nats | same answers |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {one.documents} | {one.requests} | {one.farthest:.1e} | {'yes' if one.same_answers else 'NO'} |"
            for name, one in found.items()
        ),
        "",
        f"Requests a second: {whole.ratio:.2f} times lm-eval's, encoding included in both, loading in neither.",
    ]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "lm_eval.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
