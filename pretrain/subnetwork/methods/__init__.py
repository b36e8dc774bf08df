"""Methods of progressive subnetworks, a file each; docs/add_a_method.md adds one.

The JSON block `progressive_subnetwork` is one of their `MethodKeys`, chosen by its key `method`.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import BeforeValidator, Field, create_model

from pretrain.subnetwork.methods.base import Method, MethodKeys
from pretrain.subnetwork.methods.constant import ConstantKeys
from pretrain.subnetwork.methods.full import FullKeys as _FullKeys
from pretrain.subnetwork.methods.growth import MidasKeys, StackingKeys
from pretrain.subnetwork.methods.ild_dts import IldDtsKeys
from pretrain.subnetwork.methods.parts import RaptrFfnKeys, RaptrHeadsKeys, RaptrPartsKeys
from pretrain.subnetwork.methods.pld import PldKeys
from pretrain.subnetwork.methods.raptr import RaptrKeys

OTHERS: tuple[type[MethodKeys], ...] = (
    RaptrKeys,
    ConstantKeys,
    PldKeys,
    IldDtsKeys,
    StackingKeys,
    MidasKeys,
    RaptrHeadsKeys,
    RaptrFfnKeys,
    RaptrPartsKeys,
)
"""All methods but `full`. A new one is a file and a line here."""
DEFAULT = "raptr"
"""Method of a block that names none."""


def name_of(keys: type[MethodKeys]) -> str:
    """Return the one name that a method's block may have as `method`."""
    return str(keys.model_fields["method"].annotation.__args__[0])  # type: ignore[union-attr]  # a Literal


def _all_keys() -> dict[str, tuple[Any, Any]]:
    """Return every key that any method has, as `full` takes them; where methods differ in a default, that of the first counts."""
    fields: dict[str, tuple[Any, Any]] = {}
    for keys in reversed(OTHERS):
        fields |= {key: (field.annotation, field) for key, field in keys.model_fields.items() if key != "method"}
    return fields


_SUMMARIES = " ".join([f"full: {_FullKeys.summary}.", *(f"{name_of(keys)}: {keys.summary}." for keys in OTHERS)])
_FIELDS: dict[str, Any] = {"method": (Literal["full"], Field(description=_SUMMARIES)), **_all_keys()}
FullKeys: type[MethodKeys] = create_model("FullKeys", __base__=_FullKeys, __module__=__name__, **_FIELDS)
METHODS: dict[str, type[MethodKeys]] = {"full": FullKeys, **{name_of(keys): keys for keys in OTHERS}}


def _own_keys(block: Any) -> Any:
    """Drop keys of other methods that have their default, as a block has them that was written down; refuse others."""
    if not isinstance(block, dict):
        return block
    block = {"method": DEFAULT, **block}
    keys = METHODS.get(block["method"]) if isinstance(block["method"], str) else None
    if keys is None:
        return block  # pydantic says which there are
    defaults = FullKeys(method="full")
    strange = [key for key in FullKeys.model_fields if key in block and key not in keys.model_fields]
    refused = [key for key in strange if _as_kept(block[key]) != getattr(defaults, key)]
    if refused:
        raise ValueError(
            f'method "{block["method"]}" has no {", ".join(refused)}; it takes {", ".join(keys.names())}. To leave'
            " keys behind, give the whole block"
        )
    return {key: value for key, value in block.items() if key not in strange}


def _as_kept(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


if TYPE_CHECKING:
    ProgressiveSubnetwork = MethodKeys
else:
    ProgressiveSubnetwork = Annotated[
        Union[tuple(METHODS.values())], Field(discriminator="method"), BeforeValidator(_own_keys)  # noqa: UP007
    ]


def written(block: MethodKeys, mode: str = "python") -> dict[str, Any]:
    """Return a block as it is written down: with every key that any method has, so that blocks differ in values alone."""
    everything = FullKeys(method="full").model_dump(mode=mode)
    return {**everything, **block.model_dump(mode=mode)}


def make_method(name: str, layers: int, steps: int, seed: int = 0, **keys: Any) -> Method:
    """Return the method of a run from keys of its block.

    Raises:
        ValueError: settings that cannot run.
    """
    return METHODS[name].model_validate({"method": name, **keys}).build(layers, steps, seed)


__all__ = ["METHODS", "FullKeys", "Method", "MethodKeys", "ProgressiveSubnetwork", "RaptrKeys", "make_method", "written"]
