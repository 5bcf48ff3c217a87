"""What the segments are: names from the pipeline's variables, codes from `segment_codes.json`, colours by number."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import highdicom as hd
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

_LO_LENGTH = 64  # characters of a Long String, PS3.5 6.2
# by segment number, told apart by people with any colour vision (after Okabe and Ito)
_COLOURS = ((255, 82, 82), (86, 180, 233), (240, 228, 66), (0, 190, 140), (204, 121, 167), (230, 159, 0))


class SegmentNamesError(ValueError):
    """NVIDIA_SEG_LABELS is not a list of names."""


@dataclass(frozen=True)
class Meaning:
    """What a segment's name says, as codes.

    category    CID 7150: tissue, anatomical structure or abnormality.
    kind        what it is.
    region      where an abnormality is; None for anatomy.
    laterality  left or right; None when the name does not say.
    """

    category: Code
    kind: Code
    region: Code | None = None
    laterality: Code | None = None


def segment_names(text: str) -> tuple[str, ...]:
    """The names in NVIDIA_SEG_LABELS; item i names label value i + 1.

    Takes a JSON list, and Clara's published spelling of one with escaped quotes. Empty text: no names. An item that is
    empty leaves its label without a name. Raises SegmentNamesError.

    >>> segment_names('["Liver", "Tumor"]'), segment_names(r'[\\"Lung-seg\\"]')
    (('Liver', 'Tumor'), ('Lung-seg',))
    """
    if not text.strip():
        return ()
    for spelling in (text, text.replace('\\"', '"')):
        try:
            names = json.loads(spelling)
        except json.JSONDecodeError:
            continue
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return tuple(names)
    raise SegmentNamesError(
        f"""NVIDIA_SEG_LABELS must be a JSON list of names such as ["Liver", "Tumor"], not {text}"""
    )


def meaning_of(name: str) -> Meaning:
    """Codes for a name such as `Lung-seg`, `LiverTumour` or `left kidney`; "Tissue" for one that says nothing known.

    >>> meaning_of("GroundGlass-seg").kind.meaning, meaning_of("GroundGlass-seg").region.meaning
    ('Lesion', 'Lung')
    """
    table = _table()
    words = re.sub(r"([a-z])([A-Z])", r"\1 \2", name).casefold()
    words = f" {' '.join(re.findall(r'[a-z]+', words))} "
    for spelling, usual in table["synonyms"].items():
        words = words.replace(f" {spelling} ", f" {usual} ")
    region = _found(words, table["regions"])
    laterality = _found(words, table["lateralities"])
    if abnormality := _found(words, table["abnormalities"]):
        return Meaning(_code(table["categories"]["abnormality"]), abnormality, region, laterality)
    if region:
        return Meaning(_code(table["categories"]["anatomy"]), region, None, laterality)
    tissue = _code(table["categories"]["tissue"])
    return Meaning(tissue, tissue)


def describe_segment(
    number: int, label: int, names: Sequence[str], *, algorithm_name: str, algorithm_version: str
) -> hd.seg.SegmentDescription:
    """One item of the Segment Sequence (PS3.3 C.8.20.4).

    number  1 and up without gaps, as BINARY segmentations need it.
    label   the mask's value; `names[label - 1]` names it, else it is `Segment <label>`.
    """
    name = names[label - 1].strip() if label <= len(names) else ""
    meaning = meaning_of(name)
    description = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=long_string(name or f"Segment {label}"),
        segmented_property_category=meaning.category,
        segmented_property_type=meaning.kind,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=long_string(algorithm_name),
            version=long_string(algorithm_version),
            family=codes.DCM.ArtificialIntelligence,
        ),
        anatomic_regions=[meaning.region] if meaning.region else None,
        display_color=hd.color.CIELabColor.from_rgb(*_COLOURS[(number - 1) % len(_COLOURS)]),
    )
    description.SegmentDescription = f"label {label} of the mask"
    if meaning.laterality:
        description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [
            hd.sr.CodedConcept.from_code(meaning.laterality)
        ]
    return description


def long_string(text: str, *, ending: str = "") -> str:
    """`text` and `ending` as a Long String: printable, no backslash, `text` cut so that all fits.

    >>> long_string("a\\\\b" * 40, ending=" - AI")[-10:]
    'b/a/b - AI'
    """
    printable = "".join(c if c.isprintable() else " " for c in text).replace("\\", "/").strip()
    return printable[: _LO_LENGTH - len(ending)].rstrip() + ending


def _found(words: str, table: Mapping[str, Sequence[str]]) -> Code | None:
    return next((_code(table[name]) for name in table if f" {name} " in words), None)


def _code(entry: Sequence[str]) -> Code:
    return Code(entry[0], "SCT", entry[1])


@functools.cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(Path(__file__).with_name("segment_codes.json").read_text())
    return table
