"""QIDO-RS queries (PS3.18 8.3.4 and 10.6): read from the address, and matched as PS3.4 C.2.2.2 says."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from clara_flow.errors import InputError

LARGEST_LIMIT = 1000
STUDY, SERIES, INSTANCE = "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"
# What no file holds as it is asked for: counted over many.
COUNTED = ("ModalitiesInStudy", "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances")
RANGES = {"DA", "TM", "DT"}
NAMES_AND_VALUES = re.compile(r"[0-9A-Fa-f]{8}")


class Level(StrEnum):
    """What one result stands for."""

    STUDY = "study"
    SERIES = "series"
    INSTANCE = "instance"


# Attributes of each result, PS3.18 tables 10.6.3-3 to 10.6.3-5; a level's results have those of the levels above, too.
ATTRIBUTES: Mapping[Level, Sequence[str]] = {
    Level.STUDY: (
        "StudyDate",
        "StudyTime",
        "AccessionNumber",
        "ReferringPhysicianName",
        "TimezoneOffsetFromUTC",
        "StudyDescription",
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "PatientSex",
        "StudyInstanceUID",
        "StudyID",
    ),
    Level.SERIES: (
        "Modality",
        "SeriesDescription",
        "SeriesInstanceUID",
        "SeriesNumber",
        "PerformedProcedureStepStartDate",
        "PerformedProcedureStepStartTime",
    ),
    Level.INSTANCE: (
        "SOPClassUID",
        "SOPInstanceUID",
        "InstanceNumber",
        "Rows",
        "Columns",
        "BitsAllocated",
        "NumberOfFrames",
    ),
}


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked for.

    matches     keyword -> value, without UIDs of study, series and instance: those are in `uids` (keyword -> UIDs).
    fields      keywords that are wanted beside the usual ones; everything: all that a header has.
    """

    uids: Mapping[str, tuple[str, ...]]
    matches: Mapping[str, str]
    fields: tuple[str, ...] = ()
    everything: bool = False
    limit: int = LARGEST_LIMIT
    offset: int = 0
    fuzzy: bool = False


def parse(parameters: Iterable[tuple[str, str]], fixed: Mapping[str, str] | None = None) -> Query:
    """The query of an address's parameters; `fixed` are UIDs in its path.

    Raises InputError for what cannot be asked. Its text repeats no value.
    """
    uids = {name: (uid,) for name, uid in (fixed or {}).items()}
    matches: dict[str, str] = {}
    fields: list[str] = []
    numbers = {"limit": LARGEST_LIMIT, "offset": 0}
    everything = fuzzy = False
    for name, value in parameters:
        if name == "includefield":
            for field in filter(None, value.split(",")):
                everything = everything or field == "all"
                fields += [keyword_of(field)] if field != "all" else []
        elif name in numbers:
            if not value.isascii() or not value.isdigit() or len(value) > 9:
                raise InputError(f"{name} must be a whole number")
            numbers[name] = int(value)
        elif name in {"fuzzymatching", "emptyvaluematching", "multiplevaluematching"}:
            fuzzy = fuzzy or (name == "fuzzymatching" and value.lower() == "true")
        elif (keyword := keyword_of(name)) in {STUDY, SERIES, INSTANCE}:
            asked = tuple(filter(None, re.split(r"[,\\]", value)))
            if asked and value != "*":
                uids[keyword] = tuple(uid for uid in asked if keyword not in uids or uid in uids[keyword])
        else:
            matches[keyword] = value
    return Query(
        uids=uids,
        matches={keyword: value for keyword, value in matches.items() if value not in {"", "*"}},
        fields=tuple(fields),
        everything=everything,
        limit=min(numbers["limit"], LARGEST_LIMIT),
        offset=numbers["offset"],
        fuzzy=fuzzy,
    )


def keyword_of(name: str) -> str:
    """The keyword of an attribute given as a keyword or as GGGGEEEE. Raises InputError for what is none."""
    if NAMES_AND_VALUES.fullmatch(name):
        keyword = keyword_for_tag(Tag(int(name, 16)))
    else:
        keyword = name if tag_for_keyword(name) is not None else ""
    if not keyword:
        raise InputError("a query names an attribute that is not known (sequences cannot be looked into)")
    return keyword


def fits(query: Query, header: Dataset, counted: Mapping[str, Any]) -> bool:
    """Whether a result with this header, and these values counted over many files, is asked for."""
    return all(
        any(matches(keyword, wanted, text) for text in _texts(header, counted, keyword))
        for keyword, wanted in query.matches.items()
    )


def matches(keyword: str, wanted: str, text: str) -> bool:
    """Whether one value matches: a list of UIDs, a range, wildcards, or the same value."""
    kind = dictionary_VR(keyword)
    text = text.strip(" \0")
    if kind == "UI":
        return text in re.split(r"[,\\]", wanted)
    if kind in RANGES:
        return _in_range(wanted, text)
    if kind in {"IS", "DS", "US", "UL", "SS", "SL", "FL", "FD"}:
        return _number(wanted) == _number(text)
    if kind == "PN":  # PS3.4 C.2.2.2.1: may be insensitive to case
        wanted, text = wanted.casefold().rstrip("^="), text.casefold().rstrip("^=")
    if "*" in wanted or "?" in wanted:
        return fnmatch.fnmatchcase(text, wanted.replace("[", "[[]"))
    return wanted.strip(" ") == text


def _in_range(wanted: str, text: str) -> bool:
    """`a-b`, `a-`, `-b` or one value, which may be less exact than what it is compared with."""
    low, dash, high = wanted.partition("-")
    if not dash:
        return text.startswith(wanted.strip(" "))
    return bool(text) and (not low or text >= low) and (not high or text[: len(high)] <= high)


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _texts(header: Dataset, counted: Mapping[str, Any], keyword: str) -> list[str]:
    """The values of an attribute as texts; [""] where there is none."""
    value = counted[keyword] if keyword in counted else header.get(keyword)
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    return ["" if one is None else str(one) for one in values] or [""]


def result(
    query: Query, levels: Sequence[Level], header: Dataset, uids: Mapping[str, str], counted: Mapping[str, Any]
) -> dict[str, Any]:
    """One result as DICOM JSON (PS3.18 F.2): its UIDs, the attributes of `levels`, those counted, those asked for."""
    shown = Dataset()
    wanted = [*(name for level in levels for name in ATTRIBUTES[level]), *query.fields, *query.matches]
    if query.everything:
        wanted += [element.keyword for element in header if element.keyword and element.VR != "SQ"]
    for keyword in wanted:
        if keyword in header and keyword not in counted:
            shown[keyword] = header[keyword]
    for keyword, value in {**uids, **counted}.items():
        setattr(shown, keyword, value)
    content: dict[str, Any] = shown.to_json_dict(suppress_invalid_tags=True)
    return dict(sorted(content.items()))
