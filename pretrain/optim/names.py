"""Names that hold everywhere: what is kept of every parameter, and how parameters of layers are called."""

import re

MASTER = "weight"
"""The fp32 master weight."""
MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's moments, by the names that PyTorch gives them."""
TENSORS = (MASTER, *MOMENTS)

_OF_A_LAYER = re.compile(r"(decoder\.layers\.)(\d+)(\..+)")


_BLOCK = re.compile(r"(.+)_blocks\.\d+")


def whole_name(name: str) -> str:
    """Return the name of the weight that a parameter is a block of; its own if it is none."""
    match = _BLOCK.fullmatch(name)
    return match[1] if match else name


def layer_of(name: str) -> int | None:
    """Return the layer, counted from 0, that a parameter of this name in the whole model belongs to; None outside layers."""
    match = _OF_A_LAYER.fullmatch(name)
    return int(match[2]) if match else None


def in_layer(name: str, layer: int) -> str:
    """Return the name of the same parameter of another layer."""
    return _OF_A_LAYER.sub(rf"\g<1>{layer}\g<3>", name)
