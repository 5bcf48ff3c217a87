"""What becomes of each attribute by the Basic Profile (PS3.15 Table E.1-1), as the library `dicomanonymizer` has it."""

from __future__ import annotations

from enum import Enum
from functools import cache

from dicomanonymizer.dicomfields_selector import dicom_anonymization_database_selector

TABLE = "dicomfields_2024b"


class Action(Enum):
    """What becomes of an attribute; where the table leaves a choice, what every IOD allows.

    DUMMY       D, X/D, Z/D, X/Z/D          EMPTY   Z, X/Z
    REMOVE      X                           UIDS    U, X/Z/U*: UIDs in it are replaced, the rest of it is cleaned
    """

    DUMMY = "D"
    EMPTY = "Z"
    REMOVE = "X"
    UIDS = "U"


CATEGORIES = {
    "D_TAGS": Action.DUMMY,
    "Z_D_TAGS": Action.DUMMY,
    "X_D_TAGS": Action.DUMMY,
    "X_Z_D_TAGS": Action.DUMMY,
    "Z_TAGS": Action.EMPTY,
    "X_Z_TAGS": Action.EMPTY,
    "X_TAGS": Action.REMOVE,
    "U_TAGS": Action.UIDS,
    "X_Z_U_STAR_TAGS": Action.UIDS,
}


@cache
def _table() -> tuple[dict[int, Action], list[tuple[int, int, Action]]]:
    """Actions by tag, and by (tag, mask) for repeating groups."""
    categories = dicom_anonymization_database_selector(TABLE)
    single: dict[int, Action] = {}
    repeating: list[tuple[int, int, Action]] = []
    for category, action in CATEGORIES.items():
        for group, element, *masks in categories[category]:
            tag = group << 16 | element
            if masks:
                repeating.append((tag, masks[0] << 16 | masks[1], action))
            else:
                single[tag] = action
    return single, repeating


def action_of(tag: int) -> Action | None:
    """Of one attribute; None: the table does not name it."""
    single, repeating = _table()
    found = single.get(int(tag))
    if found is None:
        found = next((action for wanted, mask, action in repeating if tag & mask == wanted & mask), None)
    return found
