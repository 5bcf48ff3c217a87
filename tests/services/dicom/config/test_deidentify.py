"""PS3.15 Annex E: no planted identifier comes through, references stay whole, nothing else is changed."""

from __future__ import annotations

import copy
import stat
import threading
import warnings
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from dicomanonymizer.dicom_anonymization_databases import dicomfields_2024b as table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread, dcmwrite
from pydicom.data import get_testdata_file, get_testdata_files
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import CTImageStorage

from clara_flow.errors import InputError, SettingsError
from clara_flow.services.dicom.deidentify import PROFILES, Deidentifier
from clara_flow.services.dicom.synthetic import synthetic_instance

KEY = bytes(range(32))
PLANTED = "PLANTED"
PLANTED_UID, PLANTED_DATE = "1.2.3.4.98765432", "19770707"
VALUES = {  # by VR: a value that must not come through
    **dict.fromkeys(("AE", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"), PLANTED),
    "CS": PLANTED, "UI": PLANTED_UID, "DA": PLANTED_DATE, "DT": f"{PLANTED_DATE}070707", "TM": "070707.777",
    "AS": "077Y", "DS": "77077.5", "IS": "77077", "FD": 77077.5, "FL": 77077.5, "UL": 77077, "SL": 77077, "US": 7707,
    "SS": 7707, "OB": b"PLANTED!", "OW": b"PLANTED!", "UN": b"PLANTED!", "OF": b"PLANTED!",
}  # fmt: skip
SINGLE = sorted({tag for tag in table.ALL_TAGS if len(tag) == 2 and tag[0] > 2})


@pytest.fixture
def cleaner() -> Deidentifier:
    return Deidentifier(KEY)


def image() -> FileDataset:
    instance = synthetic_instance("1.2.840.10008.1.2.1")
    instance.SOPClassUID = CTImageStorage
    return instance


def leaves(dataset: Dataset) -> Iterator[DataElement]:
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield from leaves(item)
        else:
            yield element


def everything(dataset: FileDataset) -> bytes:
    """All of it as it would be sent or written."""
    written = BytesIO()
    dcmwrite(written, dataset, enforce_file_format=True)
    return written.getvalue()


def planted_item() -> Dataset:
    item = Dataset()
    item.PatientName, item.PatientID, item.InstitutionName = PLANTED, PLANTED, PLANTED
    item.ReferencedSOPInstanceUID, item.StudyDate = PLANTED_UID, PLANTED_DATE
    item.ReferencedSOPClassUID = CTImageStorage
    return item


def plant(dataset: Dataset, tag: int, vr: str) -> None:
    if vr == "SQ":
        dataset.add_new(tag, "SQ", Sequence([planted_item()]))
    else:
        dataset.add_new(tag, vr, VALUES[vr])


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_nothing_planted_in_any_attribute_of_the_table_comes_through(cleaner: Deidentifier, depth: int) -> None:
    instance = image()
    target: Dataset = instance
    for _ in range(depth):  # in a sequence that the table does not name
        item = Dataset()
        target.ReferencedSeriesSequence = Sequence([item])
        target = item
    for group, element in SINGLE:
        vr = dictionary_VR((group, element)).split(" or ")[0]
        if (group, element) == (0x0008, 0x0018) and not depth:
            continue
        plant(target, group << 16 | element, vr)
    before = everything(instance)
    assert PLANTED.encode() in before
    after = everything(cleaner.deidentify(instance, "basic"))
    for secret in (PLANTED, PLANTED_UID, PLANTED_DATE, "077Y", "77077", "070707"):
        assert secret.encode() not in after, secret
    assert everything(instance) == before  # the original stays


@pytest.mark.parametrize("tag", [0x50000010, 0x50FE3000, 0x60003000, 0x60024000])
def test_curves_and_overlays_go(cleaner: Deidentifier, tag: int) -> None:
    instance = image()
    instance.add_new(tag, "OB" if tag & 0xFFFF == 0x3000 else "LT", b"PLANTED!" if tag & 0xFFFF == 0x3000 else PLANTED)
    assert tag not in cleaner.deidentify(instance, "basic")


def test_what_nobody_can_read_goes(cleaner: Deidentifier) -> None:
    instance = image()
    block = instance.private_block(0x0009, PLANTED, create=True)
    block.add_new(0x01, "LO", PLANTED)
    item = planted_item()
    item.private_block(0x0011, PLANTED, create=True).add_new(0x02, "SQ", Sequence([planted_item()]))
    instance.ReferencedSeriesSequence = Sequence([item])
    instance.add_new(0x00187FFE, "UN", b"PLANTED!")  # no attribute of the standard
    instance.add_new(0x00100000, "UL", 7)  # a group length, not right any more
    for number, vr in ((0x00180050, "DS"), (0x00200013, "IS"), (0x00080020, "DA"), (0x00080016, "UI")):
        broken = Tag(number)  # of another kind than its value
        instance._dict[broken] = RawDataElement(broken, vr, 8, b"PLANTED!", 0, False, True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cleaned = cleaner.deidentify(instance, "basic-keep-dates")
    assert PLANTED.encode() not in everything(cleaned)
    assert 0x00100000 not in cleaned


def test_the_files_head_says_nothing(cleaner: Deidentifier) -> None:
    instance = image()
    instance.file_meta.SourceApplicationEntityTitle = PLANTED
    instance.file_meta.PrivateInformationCreatorUID, instance.file_meta.PrivateInformation = "1.2.3", b"PLANTED!"
    instance.preamble = PLANTED.encode().ljust(128, b"\0")
    cleaned = cleaner.deidentify(instance, "basic")
    assert PLANTED.encode() not in everything(cleaned)
    assert cleaned.file_meta.MediaStorageSOPInstanceUID == cleaned.SOPInstanceUID != instance.SOPInstanceUID
    assert cleaned.file_meta.TransferSyntaxUID == instance.file_meta.TransferSyntaxUID


def test_it_says_what_was_done(cleaner: Deidentifier) -> None:
    cleaned = cleaner.deidentify(image(), "basic")
    assert (cleaned.PatientIdentityRemoved, cleaned.LongitudinalTemporalInformationModified) == ("YES", "REMOVED")
    assert [item.CodeValue for item in cleaned.DeidentificationMethodCodeSequence] == ["113100"]
    kept = cleaner.deidentify(image(), "basic-keep-dates")
    assert kept.LongitudinalTemporalInformationModified == "UNMODIFIED"
    assert [item.CodeValue for item in kept.DeidentificationMethodCodeSequence] == ["113100", "113106"]


def test_dates_of_care_can_be_kept_the_patients_own_never(cleaner: Deidentifier) -> None:
    instance = image()
    instance.StudyDate, instance.AcquisitionDateTime, instance.PatientBirthDate = PLANTED_DATE, "20200101", PLANTED_DATE
    instance.TimezoneOffsetFromUTC = "+0100"
    kept = cleaner.deidentify(instance, "basic-keep-dates")
    assert (kept.StudyDate, kept.AcquisitionDateTime, kept.TimezoneOffsetFromUTC) == (PLANTED_DATE, "20200101", "+0100")
    assert kept.PatientBirthDate == ""
    basic = cleaner.deidentify(instance, "basic")
    assert basic.StudyDate == ""
    assert PLANTED_DATE.encode() not in everything(basic)
    assert kept.StudyInstanceUID == basic.StudyInstanceUID


def test_instances_of_a_study_stay_together(cleaner: Deidentifier) -> None:
    """Also those that refer to others, as a segmentation does to its images."""
    first, second = image(), image()
    first.PatientID = second.PatientID = "4711"
    second.SOPInstanceUID, reference = "1.2.3.9", Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = first.SOPClassUID, first.SOPInstanceUID
    series = Dataset()
    series.SeriesInstanceUID, series.ReferencedInstanceSequence = first.SeriesInstanceUID, Sequence([reference])
    second.ReferencedSeriesSequence = Sequence([series])
    second.SourceImageSequence = Sequence([copy.deepcopy(reference)])
    one, other = (Deidentifier(KEY).deidentify(instance, "basic") for instance in (first, second))
    assert one.StudyInstanceUID == other.StudyInstanceUID != first.StudyInstanceUID
    assert one.PatientID == other.PatientID != first.PatientID
    assert one.SOPInstanceUID != other.SOPInstanceUID
    (cleaned_series,) = other.ReferencedSeriesSequence
    assert cleaned_series.SeriesInstanceUID == one.SeriesInstanceUID
    assert cleaned_series.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == one.SOPInstanceUID
    assert other.SourceImageSequence[0].ReferencedSOPInstanceUID == one.SOPInstanceUID
    assert other.SourceImageSequence[0].ReferencedSOPClassUID == first.SOPClassUID
    stranger = Deidentifier(bytes(32)).deidentify(first, "basic")
    assert stranger.StudyInstanceUID != one.StudyInstanceUID
    assert stranger.PatientID != one.PatientID


@given(st.from_regex(r"[0-2]\.[1-9][0-9]{0,20}(\.[1-9][0-9]{0,9}){0,3}", fullmatch=True))
def test_uids_are_valid_and_always_the_same(uid: str) -> None:
    cleaner = Deidentifier(KEY)
    mapped = cleaner.uid(uid)
    assert mapped.is_valid
    assert mapped.startswith("2.25.")
    assert mapped == Deidentifier(KEY).uid(uid)
    assert cleaner.uid("") == ""
    assert cleaner.uid(CTImageStorage) == CTImageStorage


@pytest.mark.parametrize("value", ["YES", "YES "])
def test_data_burned_into_pixels_are_not_handed_on(cleaner: Deidentifier, value: str) -> None:
    instance = image()
    instance.BurnedInAnnotation = value
    with pytest.raises(InputError, match="burned into its pixels"):
        cleaner.deidentify(instance, "basic")
    instance.BurnedInAnnotation = "NO"
    assert cleaner.deidentify(instance, "basic").PixelData == instance.PixelData


def test_off_is_off_and_a_profile_that_there_is_not_is_refused(cleaner: Deidentifier) -> None:
    instance = image()
    assert cleaner.deidentify(instance, "") is instance
    with pytest.raises(InputError, match="there are basic, basic-keep-dates"):
        cleaner.deidentify(instance, "partly")


@pytest.mark.parametrize("profile", PROFILES)
def test_what_the_table_does_not_name_stays(cleaner: Deidentifier, profile: str) -> None:
    before = dcmread(get_testdata_file("CT_small.dcm"))
    after = cleaner.deidentify(before, profile)
    named = {Tag(tag) for tag in SINGLE}
    for element in before:
        if element.tag not in named and not element.tag.is_private:
            assert after.get(element.tag) == element, keyword_for_tag(element.tag)
    assert str(before.PatientName).encode() not in everything(after)


@pytest.mark.filterwarnings("ignore")
def test_every_test_file_of_pydicom_is_cleaned_and_can_be_written(cleaner: Deidentifier) -> None:
    cleaned_files = 0
    for name in sorted(get_testdata_files("*.dcm")):
        try:
            before = dcmread(name)
            everything(before)
        except Exception:  # noqa: BLE001, S112  broken on purpose: such a file is nobody's to send
            continue
        after = cleaner.deidentify(before, "basic")
        everything(after)
        identity = {str(before.get(keyword, "")) for keyword in ("PatientName", "PatientID", "AccessionNumber")}
        shown = {str(element.value) for element in leaves(after)}
        assert not {word for word in identity if len(word) > 3} & shown, name
        cleaned_files += 1
    assert cleaned_files > 50


@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=50)
@given(st.dictionaries(st.sampled_from([tag for tag in SINGLE if dictionary_VR(tag) != "SQ"]), st.integers(0, 3)))
def test_cleaning_twice_takes_nothing_more(plan: dict[tuple[int, int], int]) -> None:
    cleaner, instance = Deidentifier(KEY), image()
    for tag in plan:
        vr = dictionary_VR(tag).split(" or ")[0]
        if tag != (0x0008, 0x0018):
            plant(instance, tag[0] << 16 | tag[1], vr)
    once = cleaner.deidentify(instance, "basic")
    twice = cleaner.deidentify(once, "basic")
    assert once.keys() == twice.keys()


def test_a_file_is_cleaned_into_another(cleaner: Deidentifier, tmp_path: Path) -> None:
    source, target = Path(get_testdata_file("JPEG2000.dcm")), tmp_path / "cleaned.dcm"
    cleaner.deidentify_file(source, target, "basic")
    before, after = dcmread(source), dcmread(target)
    assert after.file_meta.TransferSyntaxUID == before.file_meta.TransferSyntaxUID
    assert after.PixelData == before.PixelData
    assert after.SOPInstanceUID == after.file_meta.MediaStorageSOPInstanceUID == cleaner.uid(before.SOPInstanceUID)
    assert str(before.PatientName).encode() not in target.read_bytes()
    with pytest.raises(FileExistsError):
        cleaner.deidentify_file(source, target, "basic")


def test_a_file_that_is_no_dicom_is_refused(cleaner: Deidentifier, tmp_path: Path) -> None:
    source = tmp_path / "x"
    source.write_bytes(b"PLANTED")
    with pytest.raises(InputError, match="is no DICOM") as refusal:
        cleaner.deidentify_file(source, tmp_path / "y", "basic")
    assert "PLANTED" not in str(refusal.value)
    assert not (tmp_path / "y").exists()


def test_the_key_of_an_installation_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "dicom" / "deidentification.key"
    start, mapped = threading.Barrier(8), []

    def map_one() -> None:
        start.wait()
        mapped.append(Deidentifier.of(path).uid("1.2.3"))

    threads = [threading.Thread(target=map_one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(mapped) == 8
    assert len(set(mapped)) == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]
    path.write_bytes(b"short")
    with pytest.raises(SettingsError, match="too short"):
        Deidentifier.of(path)
