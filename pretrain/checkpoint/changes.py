"""What may differ between a run and the checkpoint that it resumes from."""

from collections.abc import Sequence

from pretrain.config import Run
from pretrain.config.run import SINCE
from pretrain.config.strict import COMMAND_LINE, did_you_mean
from pretrain.errors import UserError

NEVER = "recipe.model."
"""Keys that no name lets change: the weights have that shape."""


def require_allowed(ours: Run, theirs: Run, changing: Sequence[str], where: str, other_content: Sequence[str] = ()) -> None:
    """Two runs are the same but for what was named.

    Args:
        changing: names of settings, as lr, path_lengths or ds.scheduler.
        where: `theirs` come from, for the message.
        other_content: settings that name files which hold something else than they did for `theirs`, as data.train.

    Raises:
        UserError: a name that no setting has, or a list of the differences that none of the names covers.
    """
    mine, other = ours.identity(), theirs.identity()
    replaced = {f"recipe.{name}" for name in other_content}
    keys = sorted(mine.keys() | other.keys() | replaced)
    for name in changing:
        known = [*keys, *SINCE]
        if not any(_covers(name, key) for key in known):
            ends = sorted({part for key in known for part in key.split(".")})
            raise UserError(f"{COMMAND_LINE}: --resume-changing {name}: no setting has this name{did_you_mean(name, ends)}")
    different = [key for key in keys if key in replaced or mine.get(key) != other.get(key)]
    refused = [key for key in different if key.startswith(NEVER) or not any(_covers(name, key) for name in changing)]
    if not refused:
        return
    shown = "; ".join(
        f"{key} is {other.get(key, SINCE.get(key))!r} there, {mine.get(key, SINCE.get(key))!r} here"
        if mine.get(key) != other.get(key)
        else f"{key} holds other tokens than it did then"
        for key in refused
    )
    fixed = [key for key in refused if key.startswith(NEVER)]
    mend = "choose another with --run-dir"
    if not fixed:
        mend += f", or, to resume with the change, pass --resume-changing {','.join(_shortest(key, keys) for key in refused)}"
    raise UserError(f"{where}: holds another run: {shown}; {mend}")


def _covers(name: str, key: str) -> bool:
    """Is the setting called so, or does it stand in a section that is?"""
    return f".{name}." in f".{key}."


def _shortest(key: str, keys: Sequence[str]) -> str:
    """The shortest name that covers this key alone; the key itself where others are within it."""
    parts = key.split(".")
    names = (".".join(parts[begin:]) for begin in range(len(parts) - 1, -1, -1))
    return next((name for name in names if sum(_covers(name, other) for other in keys) == 1), key)
