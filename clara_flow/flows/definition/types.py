"""Types of inputs and outputs (api-version 0.5.0 on): from text to the plan's type, and whether two fit."""

from __future__ import annotations

import math
import re

from clara_flow.flows.definition.syntax import DIMENSION, Entry
from clara_flow.plan import Medium, PlanType

_WIDTHS = {"uint": (8, 16, 32, 64), "int": (8, 16, 32, 64), "float": (16, 32, 64)}
# Both spellings, `u8` and `uint8`, to the numpy name.
PRIMITIVES = {
    spelling: f"{kind}{width}"
    for kind, widths in _WIDTHS.items()
    for width in widths
    for spelling in (f"{kind[0]}{width}", f"{kind}{width}")
}
_ITEM_BYTES = {f"{kind}{width}": width // 8 for kind, widths in _WIDTHS.items() for width in widths}
TYPES = ("stream", "array", "string", *PRIMITIVES)
STREAM_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,254}")
MAX_RANK = 32
PAGE_BYTES = 4096


def is_memory(type_name: str) -> bool:
    """Whether values of that type live in shared memory; unknown types do not."""
    return type_name in TYPES and type_name != "stream"


def plan_type(entry: Entry) -> PlanType | None:
    """The plan's type of an entry; None when it has none or its keys do not fit together (rule P09 tells)."""
    if entry.type is None:
        return None
    element = entry.element_type or entry.format
    match entry.type.value:
        case "stream" if element is not None:
            return PlanType(type="stream", element_type=element.value)
        case "string":
            return PlanType(type="string")
        case "array" if element is not None and element.value in PRIMITIVES:
            shape = [DIMENSION.parse(dimension) for dimension in entry.shape]
            if shape and None not in shape:
                dimensions = tuple(size if size else -1 for size in shape if size is not None)
                return PlanType(type="array", element_type=PRIMITIVES[element.value], shape=dimensions)
        case name if name in PRIMITIVES:
            return PlanType(type="array", element_type=PRIMITIVES[name], shape=(1,))
    return None


def spelled(kind: PlanType) -> str:
    """A type for messages: `stream of dicom`, `array of int16 [-1, 512, 512]`, `string`."""
    if kind.type == "stream":
        return f"stream of {kind.element_type}"
    if kind.type == "string":
        return "string"
    return f"array of {kind.element_type} {list(kind.shape)}"


def misfit(produced: PlanType, consumed: PlanType) -> str:
    """Why a consumer cannot take what a producer gives; "" when it can.

    A dynamic dimension fits any: where the consumer fixes what the producer decides at run time, the run checks.
    """
    if produced.medium is not consumed.medium:
        return "one is files, the other is shared memory"
    if produced.type == "stream":
        same = produced.element_type.casefold() == consumed.element_type.casefold()
        return "" if same else "the element types differ"
    (element, shape), (wanted, wanted_shape) = _as_array(produced), _as_array(consumed)
    if element != wanted:
        return "the element types differ"
    if len(shape) != len(wanted_shape):
        return "the numbers of dimensions differ"
    for axis, (size, wanted_size) in enumerate(zip(shape, wanted_shape, strict=True), 1):
        if -1 not in (size, wanted_size) and size != wanted_size:
            return f"dimension {axis} differs"
    return ""


def block_bytes(kind: PlanType) -> int | None:
    """What a value takes of the job's FastIO volume: a page of header, and whole pages of data.

    None where the producer decides at run time; 0 for files.
    """
    if kind.medium is Medium.DISK:
        return 0
    element, shape = _as_array(kind)
    if -1 in shape:
        return None
    pages = -(-_ITEM_BYTES[element] * math.prod(shape) // PAGE_BYTES)
    return (1 + pages) * PAGE_BYTES


def _as_array(kind: PlanType) -> tuple[str, tuple[int, ...]]:
    return ("uint8", (-1,)) if kind.type == "string" else (kind.element_type, kind.shape)
