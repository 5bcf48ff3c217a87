"""De-identification by the Basic Application Level Confidentiality Profile of PS3.15 Annex E. Off unless asked for.

The table E.1-1 and the dummies of each VR are the library's `dicomanonymizer`; going through sequences, which it leaves
alone where the table does not name them, and consistent UIDs, which it forgets with the process, are ours.

A patient's or study's instances stay together: numbers and UIDs are replaced by what a keyed hash makes of them.
Whoever has the key of the installation can tell again which is which; nobody else can.
"""

from __future__ import annotations

import copy
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from dicomanonymizer.simpledicomanonymizer import empty_element, replace_element
from pydicom import dcmwrite
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag
from pydicom.uid import UID

from clara_flow.errors import InputError, SettingsError
from clara_flow.services.dicom.deidentify_table import Action, action_of
from clara_flow.services.dicom.reading import read_whole
from clara_flow.settings import Settings

KEY_BYTES = 32
SMALLEST_KEY_BYTES = 16
PSEUDONYM_DIGITS = 16

PATIENT_ID = 0x00100020
PATIENT_GROUP = 0x0010
TIMEZONE = 0x00080201
BURNED_IN = 0x00280301
SOP_INSTANCE_UID = 0x00080018
LONGITUDINAL = "LongitudinalTemporalInformationModified"
TEMPORAL = frozenset({"DA", "TM", "DT"})
OPTIONAL_TREES = frozenset({0x0040A730, 0x00700001})  # ContentSequence, GraphicAnnotationSequence: of dummies they lie
HEAD = frozenset({0x00020000, 0x00020001, 0x00020002, 0x00020003, 0x00020010, 0x00020012, 0x00020013})

# What a value may consist of (PS3.5 section 6.2), where a parser lets anything through.
FORMS = {
    "DS": re.compile(r"[-+0-9.eE ]*"),
    "IS": re.compile(r"[-+0-9 ]*"),
    "DA": re.compile(r"[-0-9. ]*"),
    "TM": re.compile(r"[-0-9.: ]*"),
    "DT": re.compile(r"[-+0-9. ]*"),
    "AS": re.compile(r"[0-9]{3}[DWMY] *"),
    "UI": re.compile(r"[0-9. ]*"),
}

# PS3.16 CID 7050, coding scheme DCM
BASIC_CODE = ("113100", "Basic Application Confidentiality Profile")
KEEP_DATES_CODE = ("113106", "Retain Longitudinal Temporal Information Full Dates Option")


@dataclass(frozen=True, slots=True)
class Profile:
    """One way to de-identify, by name."""

    name: str
    keeps_dates: bool
    codes: tuple[tuple[str, str], ...]


PROFILES: Mapping[str, Profile] = {
    "basic": Profile("basic", keeps_dates=False, codes=(BASIC_CODE,)),
    "basic-keep-dates": Profile("basic-keep-dates", keeps_dates=True, codes=(BASIC_CODE, KEEP_DATES_CODE)),
}


def key_file(settings: Settings) -> Path:
    """Where the installation's key lies. Keep it: with another one instances get other UIDs."""
    return settings.data_dir / "dicom" / "deidentification.key"


class Deidentifier:
    """De-identifies with the key of an installation. For any thread."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def of(cls, path: Path) -> Deidentifier:
        """With the key in that file, which is made where there is none. Raises SettingsError, OSError."""
        with suppress(FileExistsError, FileNotFoundError):
            return cls(_read_key(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(KEY_BYTES))
                file.flush()
                os.fsync(file.fileno())
            with suppress(FileExistsError):  # of two that make one, the first one's counts
                path.hardlink_to(partial)
        finally:
            partial.unlink()
        return cls(_read_key(path))

    def deidentify(self, dataset: Dataset, profile: str) -> Dataset:
        """A cleaned copy; `dataset` stays as it is.

        profile     a name of PROFILES; "" is none: the data set itself comes back.

        Raises InputError for a profile that there is not, and for an image that says that the patient's data are burned
        into its pixels (PS3.3 C.7.6.1.1: BurnedInAnnotation YES): no profile takes them out.
        """
        if not profile:
            return dataset
        if profile not in PROFILES:
            raise InputError(f"there is no de-identification profile {profile!r}; there are {', '.join(PROFILES)}")
        chosen = PROFILES[profile]
        if str(dataset.get(BURNED_IN).value if BURNED_IN in dataset else "").strip().upper() == "YES":
            raise InputError(
                "an image with the patient's data burned into its pixels (BurnedInAnnotation YES) cannot be "
                "de-identified: it is not handed on"
            )
        cleaned = copy.deepcopy(dataset)  # bytes, such as pixels, are shared
        self._clean(cleaned, chosen)
        _say_what_was_done(cleaned, chosen)
        _clean_head(cleaned)
        return cleaned

    def deidentify_file(self, source: Path, target: Path, profile: str) -> None:
        """Write a cleaned copy of the Part 10 file `source` to the new file `target`, in its transfer syntax, durably.

        Raises InputError as `deidentify` does and for a file that cannot be read as DICOM, OSError.
        """
        try:
            dataset = read_whole(source)
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001  what a parser raises for broken files is not to be foreseen
            raise InputError(f"a file that is no DICOM ({type(error).__name__}) cannot be de-identified") from None
        cleaned = self.deidentify(dataset, profile)
        with target.open("xb") as file:
            try:
                dcmwrite(file, cleaned, enforce_file_format=True)
            except (ValueError, TypeError, AttributeError, KeyError, NotImplementedError) as error:
                target.unlink()
                raise InputError(f"what is left of an instance cannot be written ({type(error).__name__})") from None
            file.flush()
            os.fsync(file.fileno())

    def uid(self, original: str) -> UID:
        """The UID in its place, always the same (PS3.5 Annex B.2: `2.25.` and a UUID as a number). "" stays "".

        UIDs of the standard itself (SOP classes, transfer syntaxes) are no instances and stay.
        """
        if not original or UID(original).name != original:
            return UID(original)
        digest = hmac.digest(self._key, b"uid\0" + original.encode(), hashlib.sha256)
        return UID(f"2.25.{UUID(bytes=digest[:16], version=4).int}")

    def pseudonym(self, patient_id: str) -> str:
        """A patient's number in its place, always the same."""
        digest = hmac.digest(self._key, b"patient\0" + patient_id.strip().encode(), hashlib.sha256)
        return digest.hex()[:PSEUDONYM_DIGITS].upper()

    def _clean(self, dataset: Dataset, profile: Profile) -> None:
        for tag in list(dataset.keys()):
            element = _readable(dataset, tag)
            if element is None:
                del dataset[tag]
                continue
            action = action_of(element.tag)
            if action is not None and profile.keeps_dates and _is_date_of_care(element):
                continue
            if action is Action.REMOVE or (action is Action.DUMMY and tag in OPTIONAL_TREES):
                del dataset[tag]
            elif tag == PATIENT_ID and not element.is_empty:
                element.value = self.pseudonym(str(element.value))
            elif action is Action.UIDS:
                self._replace_uids(element, profile)
            elif action is Action.EMPTY:
                self._empty(dataset, element)
            elif action is Action.DUMMY:
                self._dummy(dataset, element)
            elif element.VR == "SQ":
                for item in element.value:
                    self._clean(item, profile)

    def _replace_uids(self, element: DataElement, profile: Profile) -> None:
        if element.VR == "SQ":
            for item in element.value:
                self._clean(item, profile)
        elif isinstance(element.value, MultiValue):
            element.value = [self.uid(str(value)) for value in element.value]
        else:
            element.value = self.uid(str(element.value or ""))

    def _empty(self, dataset: Dataset, element: DataElement) -> None:
        """Z: nothing in it; not in dates either, which the library would fill: type 2 may be empty (PS3.5 7.4.3)."""
        if element.VR == "SQ":
            element.value = Sequence()
        elif element.VR in TEMPORAL:
            element.value = ""
        else:
            _by_library(empty_element, dataset, element)

    def _dummy(self, dataset: Dataset, element: DataElement) -> None:
        """D: something in it that says nothing. In a sequence every value of every item is one."""
        if element.VR == "SQ":
            for item in element.value:
                for tag in list(item.keys()):
                    nested = _readable(item, tag)
                    if nested is None:
                        del item[tag]
                    else:
                        self._dummy(item, nested)
        elif element.VR == "UI":
            self._replace_uids(element, PROFILES["basic"])
        elif not element.is_empty:
            _by_library(replace_element, dataset, element)


def _readable(dataset: Dataset, tag: BaseTag) -> DataElement | None:
    """The element; None for what cannot be cleaned, since nobody knows what is in it: private, unknown or broken ones.

    Group lengths are none either: they would not be right any more.
    """
    if tag.is_private or tag.element == 0:
        return None
    try:
        element = dataset[tag]
    except Exception:  # noqa: BLE001  what a parser raises for broken values is not to be foreseen
        return None
    form = FORMS.get(element.VR)
    if element.VR == "UN" or (form is not None and not all(form.fullmatch(str(value)) for value in _values(element))):
        return None
    return element


def _values(element: DataElement) -> list[object]:
    if element.is_empty:
        return []
    return list(element.value) if isinstance(element.value, MultiValue) else [element.value]


def _clean_head(dataset: Dataset) -> None:
    """The file's preamble and meta information: the instance's new UID, and no AE titles or addresses."""
    meta = getattr(dataset, "file_meta", None)
    if meta is not None:
        for tag in [tag for tag in meta.keys() if tag not in HEAD]:  # noqa: SIM118  a data set's iterator gives elements
            del meta[tag]
        if SOP_INSTANCE_UID in dataset:
            meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    if getattr(dataset, "preamble", None):
        dataset.preamble = bytes(128)


def _by_library(change: Callable[[DataElement], None], dataset: Dataset, element: DataElement) -> None:
    """What it has no dummy for goes altogether."""
    try:
        change(element)
    except NotImplementedError:
        del dataset[element.tag]


def _is_date_of_care(element: DataElement) -> bool:
    """Whether it is one of those that the full-dates option keeps: all but the patient's own, such as the birthday."""
    return element.tag.group != PATIENT_GROUP and (element.VR in TEMPORAL or int(element.tag) == TIMEZONE)


def _say_what_was_done(dataset: Dataset, profile: Profile) -> None:
    """PS3.15 E.1.1: PatientIdentityRemoved and how; PS3.3 C.12.1.1: what became of dates."""
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = f"clara-flow {profile.name}"
    items = []
    for value, meaning in profile.codes:
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
        items.append(item)
    dataset.DeidentificationMethodCodeSequence = Sequence(items)
    setattr(dataset, LONGITUDINAL, "UNMODIFIED" if profile.keeps_dates else "REMOVED")


def _read_key(path: Path) -> bytes:
    key = path.read_bytes()
    if len(key) < SMALLEST_KEY_BYTES:
        raise SettingsError(
            f"{path} is too short for a key: put {KEY_BYTES} random bytes there, or remove it so that it is made anew "
            "(instances are given other UIDs then)"
        )
    return key
