"""Methods of progressive subnetworks, a file each; docs/add_a_method.md adds one."""

from collections.abc import Callable
from functools import partial
from typing import Any

from pretrain.subnetwork.methods import constant, full, growth, ild_dts, pld, raptr
from pretrain.subnetwork.methods.base import Method, MethodName, Settings

BUILDERS: dict[MethodName, Callable[[Settings], Method]] = {
    "full": full.build,
    "raptr": raptr.build,
    "constant": constant.build,
    "pld": pld.build,
    "ild_dts": ild_dts.build,
    "stacking": partial(growth.build, name="stacking"),
    "midas": partial(growth.build, name="midas"),
}
KEYS: dict[MethodName, tuple[str, ...]] = {
    "raptr": raptr.KEYS,
    "constant": constant.KEYS,
    "pld": pld.KEYS,
    "ild_dts": ild_dts.KEYS,
    "stacking": growth.KEYS,
    "midas": growth.KEYS,
}
"""Of `progressive_subnetwork`, that each method takes; `full` takes all and heeds none."""
RESIDUAL_SCALE = {"pld": pld.RESIDUAL_SCALE, "ild_dts": ild_dts.RESIDUAL_SCALE}
"""Where it is not "none" unless given."""


def make_method(name: MethodName, **settings: Any) -> Method:
    """The method of a run; settings are those of `Settings`.

    Raises:
        ValueError: settings that cannot run.
    """
    if name in RESIDUAL_SCALE:
        settings.setdefault("residual_scale", RESIDUAL_SCALE[name])
    return BUILDERS[name](Settings(**settings))


__all__ = ["KEYS", "RESIDUAL_SCALE", "Method", "MethodName", "make_method"]
