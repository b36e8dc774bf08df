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
from typing import TYPE_CHECKING

from bench.arguments import positive
from pretrain.errors import UserError
from pretrain.place import alone, find_place

if TYPE_CHECKING:
    from pretrain.evaluate.documents import Document, Written

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


@dataclass(frozen=True)
class Found:
    """What a comparison finds."""

    tasks: dict[str, Compared]
    """By task, and "all" of them together."""
    ratios: dict[int, float]
    """Requests a second, ours over theirs, by batch size of theirs."""


def compare(
    run: Path, tasks: Sequence[str], data: Path, limit: int, shots: int, python: Path, batch_sizes: Sequence[int]
) -> Found:
    """Put tasks to a run's newest checkpoint and to its export.

    Times are of the processor, of one thread each, so that what else runs on the machine counts little.
    With shots, lm-eval is given contexts with ours, because it would draw others.
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
    from tokenizer.files import records_of

    asking = Asking(limit, 1, shots, "causal", None)
    with tempfile.TemporaryDirectory() as home, join("cpu", place, Path.cwd()) as ranks:
        with loaded(run, Parallel(), ranks) as model:
            length = model.run.recipe.data.sequence_length
            begin, posed = time.process_time(), {}
            for task in choose(tasks, catalogue(model.run, data), data):
                assert isinstance(task.questions, FromData)
                found = task.questions.posed(asking, model.tokenizer, length)[0]
                if not found:
                    raise UserError(
                        f"task {task.name}: all documents are longer than the {length} positions of the run's samples"
                    )
                posed[task.name] = (task, found)
            requests = [request for _, each in posed.values() for one in each for request in one.requests]
            scores = iter(score(model.engine, requests, 0, both_ways=False))
            ours = {name: [[next(scores) for _ in one.requests] for one in each] for name, (_, each) in posed.items()}
            seconds = time.process_time() - begin
        export(run, Path(home) / "hf")
        asked: dict[str, dict[str, str]] = {}
        for name, (task, each) in posed.items():
            assert isinstance(task.questions, FromData) and task.file is not None
            numbers, file = [one.number for one in each], (Path(home) / name).with_suffix(".jsonl")
            if shots:
                by_number = {document.number: document for document in task.questions.data.documents(limit, 1, shots)}
                _write([_in_full(by_number[number]) for number in numbers], file)
                asked[name] = {"file": str(file)}
            else:
                rows = list(records_of(task.file))
                _write([rows[number - 1] for number in numbers], file)
                asked[name] = {"yaml": YAML[name], "file": str(file)}
        theirs = {
            size: _ask(python, {"model": str(Path(home) / "hf"), "batch_size": size, "tasks": asked}, Path(home))
            for size in batch_sizes
        }
    compared = {}
    for name, (task, each) in posed.items():
        right = outcome(each, ours[name], 0, task.average).values
        accuracy = right.get("accuracy", right["greedy"]).tolist()
        samples = [answers["samples"][name] for answers in theirs.values()]
        farthest = max(
            abs(score.log_likelihood - other[0])
            for answers in samples
            for scores_, sample in zip(ours[name], answers, strict=True)
            for score, other in zip(scores_, sample["scores"], strict=True)
        )
        same = all(accuracy == [sample["accuracy"] for sample in answers] for answers in samples)
        compared[name] = Compared(len(each), sum(map(len, ours[name])), farthest, same)
    compared["all"] = Compared(
        sum(one.documents for one in compared.values()), len(requests), max(one.farthest for one in compared.values()),
        all(one.same_answers for one in compared.values()),
    )  # fmt: skip
    return Found(compared, {size: answers["seconds"] / seconds for size, answers in theirs.items()})


def _in_full(document: "Document | Written") -> dict[str, object]:
    """Return a document as texts, for lm-eval to put as they are."""
    from pretrain.evaluate.documents import Document

    if not isinstance(document, Document) or len(document.choices) == 1 or not isinstance(document.context, str):
        raise UserError("--shots: only of tasks that rank several choices after one context; leave the others out of --tasks")
    return {
        "context": document.pairs[0][0],
        "choices": [choice for _, choice in document.pairs],
        "gold": document.answer,
    }


def _write(rows: Sequence[Mapping[str, object]], file: Path) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


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
    parser.add_argument("--shots", type=positive, default=0, help="answered examples before each document; 0")
    parser.add_argument("--batch-sizes", type=positive, nargs="+", default=[1, 32], help="of lm-eval; 1 (its own) and 32")
    parser.add_argument("--lm-eval", type=Path, default=Path(".venv-lm-eval/bin/python"), metavar="PYTHON")
    parser.add_argument("--out", type=Path, default=Path("bench/results"), metavar="DIR")
    args = parser.parse_args()
    if not args.lm_eval.exists():
        raise SystemExit(f"error: {args.lm_eval}: no such file; `make .venv-lm-eval/installed` installs lm-eval there")
    try:
        found = compare(args.run, args.tasks, args.data, args.limit, args.shots, args.lm_eval, args.batch_sizes)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    from pretrain.versions import device_name

    shots = f" --shots {args.shots}" if args.shots else ""
    lines = [
        "# Scores against lm-eval's",
        "",
        f"`-m bench.lm_eval RUN --data DIR --limit {args.limit}{shots}`, lm-eval {LM_EVAL}, one thread each;"
        f" {device_name('cpu')}.",
        "",
        "| task | documents | requests | farthest log-likelihood, nats | same answers |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {one.documents} | {one.requests} | {one.farthest:.1e} | {'yes' if one.same_answers else 'NO'} |"
            for name, one in found.tasks.items()
        ),
        "",
        "Requests a second of processor time, encoding included in both, loading in neither:",
        "",
        *(f"- {ratio:.2f} times lm-eval's with batches of {size}" for size, ratio in found.ratios.items()),
    ]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "lm_eval.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
