"""What stands before a data set makes a Part 10 file of it, that pydicom and dcmtk read."""

from __future__ import annotations

import subprocess
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.dataset import FileMetaDataset, validate_file_meta
from services.dicom.spool.data_sets import EXPLICIT, encoded, example

from clara_flow.services.dicom import implementation
from clara_flow.services.dicom.file_meta import file_head

MR = "1.2.840.10008.5.1.4.1.1.4"
UIDS = st.from_regex(r"(0|[1-9][0-9]{0,9})(\.(0|[1-9][0-9]{0,9})){1,4}", fullmatch=True).filter(
    lambda uid: len(uid) <= 64
)
TITLES = st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="\\"), max_size=16).map(
    str.strip
)


def read(head: bytes) -> FileMetaDataset:
    """What pydicom makes of it."""
    return dcmread(BytesIO(head)).file_meta


@given(UIDS, UIDS, st.just(EXPLICIT), TITLES)
def test_pydicom_reads_what_was_given(sop_class: str, sop_instance: str, syntax: str, calling_ae: str) -> None:
    head = file_head(sop_class, sop_instance, syntax, calling_ae)
    meta = read(head)
    validate_file_meta(meta, enforce_standard=True)
    assert head[:132] == bytes(128) + b"DICM"
    assert meta.FileMetaInformationGroupLength == len(head) - 132 - 12
    assert meta.FileMetaInformationVersion == b"\x00\x01"
    assert (meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID) == (sop_class, sop_instance)
    assert (meta.TransferSyntaxUID, meta.ImplementationClassUID) == (syntax, implementation.CLASS_UID)
    assert meta.ImplementationVersionName == implementation.VERSION_NAME
    assert meta.get("SourceApplicationEntityTitle", "") == calling_ae
    assert meta.get("SendingApplicationEntityTitle", "") == calling_ae
    assert len(head) % 2 == 0


def test_padding_of_the_wire_is_not_taken_for_a_part() -> None:
    assert file_head(MR, "1.2.3\0", EXPLICIT + "\0", "MODALITY  ") == file_head(MR, "1.2.3", EXPLICIT, "MODALITY")


@pytest.mark.parametrize("sop_instance", ["", "1.2/../3", "1" * 65, "1.2.ä", "1.2.٠"])
def test_what_is_no_uid(sop_instance: str) -> None:
    with pytest.raises(ValueError, match="no UID"):
        file_head(MR, sop_instance, EXPLICIT, "MODALITY")


@pytest.mark.parametrize("calling_ae", ["", "  ", "A" * 17, "Ä", "A\\B", "A\nB", "A\0B"])
def test_what_is_no_title_is_left_out(calling_ae: str) -> None:
    assert file_head(MR, "1.2.3", EXPLICIT, calling_ae) == file_head(MR, "1.2.3", EXPLICIT, "")
    assert "SourceApplicationEntityTitle" not in read(file_head(MR, "1.2.3", EXPLICIT, calling_ae))


def test_dcmtk_reads_the_file(tmp_path: Path) -> None:
    path = tmp_path / "one.dcm"
    path.write_bytes(file_head(MR, "1.2.3", EXPLICIT, "MODALITY") + encoded(example(), EXPLICIT))
    dump = subprocess.run(["dcmdump", "+fo", path], capture_output=True, check=True)
    for word in (b"MODALITY", implementation.CLASS_UID.encode(), b"MRImageStorage", b"[1.2.3]"):
        assert word in dump.stdout
    assert dump.stderr == b""
