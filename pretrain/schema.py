"""The base of everything that is read from YAML or JSON, and the numbers in it."""

from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field


class Strict(BaseModel):
    """Base of every section: unknown keys are errors, values are not converted silently, objects do not change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)

    foreign: ClassVar[dict[str, str]] = {}
    """Keys that a user may know from elsewhere, with the reason why they are not accepted here."""


Positive = Annotated[int, Field(gt=0, lt=2**53)]
Width = Annotated[int, Field(gt=0, le=2**24)]
"""Size of a matrix in one direction; the largest there are are far below."""
Count = Annotated[int, Field(ge=0, lt=2**53)]
Number = Annotated[float, Field(allow_inf_nan=False)]
NotNegative = Annotated[Number, Field(ge=0)]
AboveZero = Annotated[Number, Field(gt=0)]
Share = Annotated[Number, Field(ge=0, le=1)]
