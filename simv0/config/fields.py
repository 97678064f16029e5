"""Types of config fields that pydantic has no word for."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, PlainValidator
from pydantic_core import PydanticCustomError


def _auto_or_a_number(value: Any) -> Any:
    if value == "auto" or (type(value) is int and 0 <= value <= 256):
        return value
    raise PydanticCustomError("num_workers", "Expected auto, or a number from 0 to 256")


def _n_of_m(value: list[int]) -> list[int]:
    if not (len(value) == 2 and 1 <= value[0] <= value[1]):
        raise PydanticCustomError("confirm", "Expected [N, M] with 1 <= N <= M")
    return value


Workers = Annotated[int | Literal["auto"], PlainValidator(_auto_or_a_number)]
"""`auto`, or a number of processes."""
NOfM = Annotated[list[int], AfterValidator(_n_of_m)]
"""[N, M]: N of M."""
