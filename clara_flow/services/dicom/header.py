"""The few attributes of a data set that we have to know, read while it streams in; pixel data is never looked at."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache

from pydicom.datadict import dictionary_VR, tag_for_keyword

from clara_flow.records.dicom_lines import digest
from clara_flow.services.dicom.header_elements import ElementScan
from clara_flow.services.dicom.header_text import as_text
from clara_flow.services.dicom.journal_entries import InstanceFacts

RULE_ATTRIBUTES = (
    "Modality",
    "BodyPartExamined",
    "StudyDescription",
    "SeriesDescription",
    "ProtocolName",
    "Manufacturer",
    "ManufacturerModelName",
    "StationName",
    "InstanceNumber",
    "SeriesNumber",
    "ImageType",
    "NumberOfStudyRelatedSeries",
    "NumberOfStudyRelatedInstances",
    "NumberOfSeriesRelatedInstances",
    "ImagesInAcquisition",
    "NumberOfFrames",
    "StudyDate",
)
ALWAYS_KEYS = ("00100020",)
INFLATED_LIMIT = 64 * 2**20  # bytes of a deflated data set before the last attribute that we want
INFLATED_PIECE = 2**16

CHARACTER_SET = 0x0008_0005
SOP_CLASS = 0x0008_0016
SOP_INSTANCE = 0x0008_0018
STUDY = 0x0020_000D
SERIES = 0x0020_000E
# Deflated Explicit VR Little Endian, and the JPIP ones (PS3.5 Annex A.5, A.6, A.9).
DEFLATED = frozenset({"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"})


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Attributes by tag: those that become rule attributes, with their keyword, and those that become keys."""

    keywords: Mapping[int, str]
    keys: Mapping[int, str]
    tags: frozenset[int]


@lru_cache(maxsize=32)
def _wanted(keys: frozenset[str]) -> _Wanted:
    keywords = {int(tag_for_keyword(keyword) or 0): keyword for keyword in RULE_ATTRIBUTES}
    by_tag = {int(key, 16): key.upper() for key in keys | set(ALWAYS_KEYS)}
    tags = frozenset({CHARACTER_SET, SOP_CLASS, SOP_INSTANCE, STUDY, SERIES, *keywords, *by_tag})
    return _Wanted(keywords, by_tag, tags)


@lru_cache(maxsize=256)
def _vr(tag: int) -> str:
    try:
        return dictionary_VR(tag)
    except KeyError:  # a private attribute
        return "UN"


class HeaderScanner:
    """Takes a data set in pieces of any size until all attributes of interest were seen.

    transfer_syntax     its UID; of one that is not known the data set is little-endian.
    keys                tags (GGGGEEEE) whose values' digests are wanted besides that of Patient ID.

    Sequences are passed over: only attributes of the data set itself count. Raises ValueError for a data set that
    cannot be read, and for a key that is no tag.
    """

    def __init__(self, transfer_syntax: str, keys: Collection[str] = ()) -> None:
        self.transfer_syntax = transfer_syntax
        self._wanted = _wanted(frozenset(keys))
        self._elements = ElementScan(transfer_syntax, self._wanted.tags)
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS) if transfer_syntax in DEFLATED else None
        self._inflated = 0

    @property
    def is_done(self) -> bool:
        """Whether nothing more has to be fed."""
        return self._elements.is_done

    def feed(self, data: bytes | memoryview) -> bool:
        """The next bytes, which may be reused afterwards. Returns whether nothing more has to be fed."""
        if self._elements.is_done:
            return True
        if self._inflater is None:
            self._elements.feed(memoryview(data))
        else:
            self._inflate(self._inflater, bytes(data))
        return self._elements.is_done

    def finish(self) -> None:
        """The data set is whole. Raises ValueError if it ends within an element that had to be read."""
        if not self._elements.is_done and self._elements.is_within:
            raise ValueError("the data set ends within an element")

    @property
    def facts(self) -> InstanceFacts:
        """What was found so far."""
        wanted = self._wanted
        attributes = {keyword: text for tag, keyword in wanted.keywords.items() if (text := self._text(tag))}
        keys = {key: digest(text) for tag, key in wanted.keys.items() if (text := self._text(tag))}
        return InstanceFacts(
            sop_class=self._text(SOP_CLASS),
            sop_instance=self._text(SOP_INSTANCE),
            study=self._text(STUDY),
            series=self._text(SERIES),
            transfer_syntax=self.transfer_syntax,
            attributes=attributes,
            keys=keys,
        )

    def _text(self, tag: int) -> str:
        values = self._elements.values
        if not (value := values.get(tag)):
            return ""
        character_set = values.get(CHARACTER_SET, b"")
        return as_text(value, _vr(tag), character_set=character_set, big_endian=self._elements.is_big_endian)

    def _inflate(self, inflater: zlib._Decompress, data: bytes) -> None:
        while data and not self._elements.is_done and not inflater.eof:
            try:
                piece = inflater.decompress(data, INFLATED_PIECE)
            except zlib.error:
                raise ValueError("the data set is not deflated") from None
            data = inflater.unconsumed_tail
            self._inflated += len(piece)
            if self._inflated > INFLATED_LIMIT:
                raise ValueError(f"the header of the data set inflates to more than {INFLATED_LIMIT} bytes")
            self._elements.feed(memoryview(piece))
