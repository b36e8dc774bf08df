"""`generate`: what a model writes after a prompt, or in the blanks of a text."""

import argparse
import os
from pathlib import Path

from pretrain.cli.arguments import device_argument, require_nothing_else
from pretrain.errors import UserError
from pretrain.place import find_place
from tokenizer.files import is_unicode
from tokenizer.pieces import EOS, MODES, Tokenizer

HELP = "what a model writes after a prompt, or in the blanks of a text"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, nargs="?", metavar="RUN", help="run directory, or a checkpoint's folder")
    parser.add_argument("--prompt", nargs="+", default=[], metavar="TEXT", help="what is to be continued")
    parser.add_argument("--fill", nargs="+", default=[], metavar="TEXT", help='text with blanks, as "The [X] of France is [X]."')
    parser.add_argument("--max-tokens", type=int, default=64, metavar="N", help="most tokens that are written; 64")
    parser.add_argument("--stop", nargs="+", default=[], metavar="TEXT", help="texts that end it, beside the model's own end")
    parser.add_argument("--temperature", type=float, default=0.0, help="0, the likeliest token, unless given")
    parser.add_argument("--top-p", type=float, default=1.0, help="draw among the likeliest tokens of this probability; 1")
    parser.add_argument("--seed", type=int, default=0, help="of the draws; 0")
    parser.add_argument("--attention", choices=("prefix", "causal"), help="how a prompt is read; as in training, unless given")
    parser.add_argument("--mode", choices=(*MODES, "none"), help="token before a prompt; as in training, unless given")
    device_argument(parser)
    parser.add_argument("--parallel.tensor", dest="tensor", type=int, default=1, metavar="RANKS")
    parser.add_argument("--parallel.pipeline", dest="pipeline", type=int, default=1, metavar="RANKS", help="is refused: 1")


def run(args: argparse.Namespace, rest: list[str]) -> int:
    require_nothing_else(rest)
    _require_sensible(args)
    place = find_place(os.environ)
    os.environ.update(place.environment)
    from pretrain.ranks.device import device_type
    from pretrain.ranks.libraries import prepare_libraries

    prepare_libraries(device_type(args.device))
    from pretrain.config.recipe import Parallel
    from pretrain.evaluate.load import loaded
    from pretrain.evaluate.measure import as_trained
    from pretrain.generate.fill import filled, mode_of_spans, with_sentinels
    from pretrain.generate.sampling import Sampling
    from pretrain.generate.write import Prompt, until, write
    from pretrain.ranks.launch import join

    layout = Parallel(tensor=args.tensor, pipeline=args.pipeline)
    with join(args.device, place, Path.cwd()) as ranks, loaded(args.run, layout, ranks) as model:
        data, tokenizer = model.run.recipe.data, model.tokenizer
        attention, mode = as_trained(data)
        attention = args.attention or attention
        stop, prompts = tuple(args.stop), []
        for text in args.prompt:
            tokens = _start(args.mode, mode, tokenizer) + tuple(map(int, tokenizer.encode([text])[0]))
            if not tokens:
                raise UserError(
                    "--prompt: the text is empty, and there is no mode token; a model predicts nothing before a token"
                )
            prompts.append(Prompt(tokens, attention == "prefix", args.max_tokens, stop))
        for text in args.fill:
            tokens = _start(args.mode, mode_of_spans(data), tokenizer) + with_sentinels(text, tokenizer)
            prompts.append(Prompt(tokens, args.attention != "causal", args.max_tokens, stop))
        for text, prompt in zip(args.prompt + args.fill, prompts):
            if prompt.longest > data.sequence_length:
                raise UserError(
                    f"{text[:40]!r}: {len(prompt.tokens)} tokens and {args.max_tokens} more are over the model's"
                    f" {data.sequence_length} positions; give less, or lower --max-tokens"
                )
        sampling = Sampling(args.temperature, args.top_p, args.seed)
        written = write(model.engine, ranks, tokenizer, prompts, tokenizer.id(EOS), sampling)
        if ranks.is_main:
            found = [text + until(tokenizer.text(ids), stop) for text, ids in zip(args.prompt, written)]
            found += [filled(text, ids, tokenizer) for text, ids in zip(args.fill, written[len(args.prompt) :])]
            print("\n---\n".join(found))
    return 0


def _start(asked: str | None, trained: str | None, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the mode token that a prompt begins with; without one what documents begin with, if anything."""
    mode = trained if asked is None else None if asked == "none" else asked
    return tokenizer.begin if mode is None else (tokenizer.id(mode),)


def _require_sensible(args: argparse.Namespace) -> None:
    if args.run is None:
        raise UserError("generate: name a run directory or a checkpoint, before --prompt")
    if not args.prompt and not args.fill:
        raise UserError("generate: give a text with --prompt, or one with blanks with --fill")
    for name, good, wanted in (
        ("max-tokens", args.max_tokens >= 1, "at least 1"),
        ("temperature", 0 <= args.temperature < float("inf"), "0 or more"),
        ("top-p", 0 < args.top_p <= 1, "above 0, at most 1"),
        ("parallel.tensor", args.tensor >= 1, "at least 1"),
        ("parallel.pipeline", args.pipeline >= 1, "at least 1"),
    ):
        if not good:
            raise UserError(f"--{name} {getattr(args, name.rpartition('.')[2].replace('-', '_'))}: {wanted}")
    for text in (*args.prompt, *args.fill, *args.stop):
        if not is_unicode(text):
            raise UserError(f"{text!r}: is no text: bytes of it are not UTF-8")
    if "" in args.stop:
        raise UserError("--stop: an empty text would end everything at once")
