"""What a pretrained BERT is worth on a task with labels: finetuning of an export through transformers, over several seeds.

    python -m pretrain export runs/bert --to bert_hf
    python -m bench.finetune_bert bert_hf --task sst2 --train sst2.train.tsv.xz --test sst2.dev.tsv
    python -m bench.finetune_bert bert_hf --text question passage --label answer --train a.tsv --test b.tsv

Files are tables with a line of names, columns apart by tabs, also .gz and .xz. The same model without pretraining, and whoever
always says what most say, stand beside it. Intervals are over seeds (Student's t): they order the data and draw what is new in
the model. Needs transformers, which the tests need, too.
"""

import argparse
import csv
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch

from bench.arguments import positive
from pretrain.errors import UserError
from pretrain.files import write_whole
from pretrain.study.statistics import Estimate
from pretrain.versions import device_name
from tokenizer.files import BOM, lines_of

COLUMNS = {"sst2": (["sentence"], "label"), "mrpc": (["#1 String", "#2 String"], "Quality")}
"""Columns of text and of the label, by task."""
WARMUP = 0.1
"""Share of the steps in which the learning rate rises; then it falls to zero (arXiv 1810.04805, appendix A.3)."""


@dataclass(frozen=True)
class Examples:
    """A table: texts, one or two of each example, and labels."""

    texts: list[tuple[str, ...]]
    labels: list[str]


def read_examples(file: Path, texts: Sequence[str], label: str) -> Examples:
    """Read a table.

    Raises:
        UserError: it cannot be read, or lacks a column.
    """
    try:
        lines = [line.decode() for line in lines_of(file)]
    except (OSError, EOFError, UnicodeDecodeError, ValueError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from None
    rows = csv.reader([line.removeprefix(BOM.decode()) for line in lines], delimiter="\t", quoting=csv.QUOTE_NONE)
    names = next(rows, [])
    missing = [name for name in (*texts, label) if name not in names]
    if missing:
        raise UserError(f'{file}: has no column "{missing[0]}" but {", ".join(names)}; name others with --text and --label')
    table = [row for row in rows if row]
    fields = [dict(zip(names, row)) for row in table if len(row) == len(names)]
    if not fields:
        raise UserError(f"{file}: holds no examples")
    if len(fields) < len(table):
        print(f"{file}: {len(table) - len(fields)} of {len(table)} lines are left out: not {len(names)} columns", flush=True)
    return Examples([tuple(one[name] for name in texts) for one in fields], [one[label] for one in fields])


def finetune(
    folder: Path, train: Examples, test: Examples, args: argparse.Namespace, seed: int, pretrained: bool
) -> dict[str, float]:
    """Train a classifier on top of an export, or of the same model with new weights; returns accuracy, and F1 of two labels."""
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(seed)
    names = sorted(set(train.labels))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if pretrained:
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(names), dtype=torch.float32)
    else:
        model = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(folder, num_labels=len(names)))
    model.to(args.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.01)
    steps = args.epochs * -(-len(train.texts) // args.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / max(1, WARMUP * steps), (steps - step) / (steps * (1 - WARMUP)))
    )

    def batch(texts: list[tuple[str, ...]]) -> dict[str, torch.Tensor]:
        parts = [list(part) for part in zip(*texts)]
        return tokenizer(*parts, truncation=True, padding=True, return_tensors="pt").to(args.device)

    labels = torch.tensor([names.index(label) for label in train.labels])
    for _ in range(args.epochs):
        order = torch.randperm(len(labels)).tolist()
        for begin in range(0, len(order), args.batch):
            chosen = order[begin : begin + args.batch]
            loss = model(**batch([train.texts[index] for index in chosen]), labels=labels[chosen].to(args.device)).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    model.eval()
    said: list[str] = []
    with torch.no_grad():
        for begin in range(0, len(test.texts), 4 * args.batch):
            best = model(**batch(test.texts[begin : begin + 4 * args.batch])).logits.argmax(-1).tolist()
            said += [names[index] for index in best]
    return judged(said, test.labels, names)


def judged(said: Sequence[str], right: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    """Return accuracy, and, of two labels, F1 of the second."""
    found = {"accuracy": fmean(a == b for a, b in zip(said, right, strict=True))}
    if len(names) == 2:
        both = sum(a == b == names[1] for a, b in zip(said, right))
        found["f1"] = 2 * both / max(1, Counter(said)[names[1]] + Counter(right)[names[1]])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("model", type=Path, metavar="FOLDER", help="of `python -m pretrain export`")
    parser.add_argument("--task", choices=COLUMNS, default="sst2", help="whose columns to read; sst2")
    parser.add_argument("--text", nargs="+", metavar="COLUMN", help="one or two columns of text, in place of the task's")
    parser.add_argument("--label", metavar="COLUMN")
    parser.add_argument("--train", type=Path, required=True, metavar="FILE.tsv")
    parser.add_argument("--test", type=Path, required=True, metavar="FILE.tsv")
    parser.add_argument("--limit", type=positive, metavar="N", help="first N examples of --train alone")
    parser.add_argument("--seeds", type=positive, default=5)
    parser.add_argument("--epochs", type=positive, default=3)
    parser.add_argument("--batch", type=positive, default=32)
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write all numbers")
    args = parser.parse_args()
    try:
        rows = run(args)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    for name, metrics in rows.items():
        shown = []
        for metric in metrics[0]:
            estimate = Estimate.of([one[metric] for one in metrics])
            half = "" if estimate.half_width is None else f"± {estimate.half_width:.4f}, "
            shown.append(f"{metric} {half}{estimate.mean:.4f}")
        print(f"{name:<20} {'   '.join(shown)}", flush=True)
    if args.out is not None:
        settings = {name: getattr(args, name) for name in ("task", "seeds", "epochs", "batch", "lr", "limit")}
        facts = {"device": device_name("cuda" if "cuda" in args.device else "cpu"), **settings, "runs": rows}
        write_whole(args.out, json.dumps(facts, indent=2) + "\n")


def run(args: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Finetune with every seed, with and without pretraining; returns metrics by what was tried.

    Raises:
        UserError: a folder or table cannot be used.
    """
    if not (args.model / "config.json").is_file():
        raise UserError(f"{args.model}: no exported model; `python -m pretrain export RUN --to FOLDER` writes one")
    kind = json.loads((args.model / "config.json").read_text()).get("model_type")
    if "bert" not in str(kind):
        raise UserError(f"{args.model}: is of type {kind}; this is for a BERT (recipes bert_*)")
    if args.out is not None and (args.out.is_dir() or not args.out.absolute().parent.is_dir()):
        raise UserError(f"--out {args.out}: name a file in a folder that is there")
    texts, label = COLUMNS[args.task]
    texts, label = args.text or texts, args.label or label
    train, test = (read_examples(file, texts, label) for file in (args.train, args.test))
    if args.limit is not None:
        train = Examples(train.texts[: args.limit], train.labels[: args.limit])
    unknown = set(test.labels) - set(train.labels)
    if unknown:
        raise UserError(f'{args.test}: label "{min(unknown)}" is not in {args.train}')
    _tell_of_cut(args.model, [*train.texts, *test.texts])
    most = Counter(train.labels).most_common(1)[0][0]
    seeds = range(1, args.seeds + 1)
    return {
        "pretrained": [finetune(args.model, train, test, args, seed, pretrained=True) for seed in seeds],
        "not pretrained": [finetune(args.model, train, test, args, seed, pretrained=False) for seed in seeds],
        "what most say": [judged([most] * len(test.labels), test.labels, sorted(set(train.labels)))],
    }


def _tell_of_cut(folder: Path, texts: Sequence[tuple[str, ...]]) -> None:
    """Say how many texts are longer than the model reads."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    longest = tokenizer.model_max_length
    lengths = [len(ids) for ids in tokenizer(*[list(part) for part in zip(*texts)], verbose=False)["input_ids"]]
    if cut := sum(length > longest for length in lengths):
        print(f"{cut} of {len(lengths)} texts are cut to the model's {longest} tokens", flush=True)


if __name__ == "__main__":
    main()
