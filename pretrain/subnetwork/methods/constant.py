"""Stochastic depth at one length for the whole run: RaPTr's control. Sources: arXiv 1603.09382; LayerDrop, arXiv 1909.11556."""

from pretrain.subnetwork.methods import raptr
from pretrain.subnetwork.methods.base import Settings

KEYS = tuple(key for key in raptr.KEYS if key != "stage_fractions")


def build(settings: Settings) -> raptr.Raptr:
    """Raises ValueError as RaPTr's, and where there is more than one length."""
    if len(settings.path_lengths) != 1:
        raise ValueError('method "constant" has one path length for the whole run, as in "path_lengths": "9"')
    return raptr.build(settings, "constant")
