"""Which files can be sent, and why others never can."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydicom.dataset import FileDataset
from services.dicom.export.images import data_set_bytes, image, sample, write

from clara_flow.records.payload_store import PayloadFolder, PayloadStore
from clara_flow.services.dicom.export.dimse import MAXIMUM_CONTEXTS, batches
from clara_flow.services.dicom.export.files import Outgoing, Unsendable, outgoing
from clara_flow.services.dicom.export.transcode import PLAIN


@pytest.fixture
def folder(tmp_path: Path) -> PayloadFolder:
    return PayloadStore(tmp_path / "payloads").create()


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small_RLE.dcm", "image_dfl.dcm", "ExplVR_BigEnd.dcm"])
def test_the_data_set_is_what_follows_the_meta_information(name: str, folder: PayloadFolder) -> None:
    (folder.path / "a.dcm").write_bytes(sample(name).read_bytes())
    file = outgoing(folder, "a.dcm")
    with file.open_data_set() as content:
        data = content.read()
    assert data == data_set_bytes(sample(name))
    assert len(data) == file.size_bytes
    assert str(file.read().SOPInstanceUID) == file.sop_instance


def without(*keywords: str) -> Callable[[FileDataset], None]:
    def remove(data_set: FileDataset) -> None:
        for keyword in keywords:
            delattr(data_set, keyword)

    return remove


def with_(keyword: str, value: str) -> Callable[[FileDataset], None]:
    return lambda data_set: setattr(data_set, keyword, value)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (without("StudyInstanceUID"), "it has no Study Instance UID"),
        (without("SeriesInstanceUID"), "it has no Series Instance UID"),
        (without("SOPInstanceUID"), "it has no SOP Instance UID"),
        (with_("SeriesInstanceUID", "1." + "2" * 70), "its Series Instance UID is not valid"),
        (with_("StudyInstanceUID", "1.2.x"), "its Study Instance UID is not valid"),
        (with_("StudyInstanceUID", ""), "it has no Study Instance UID"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_uids_that_are_missing_or_wrong(
    spoil: Callable[[FileDataset], None], reason: str, folder: PayloadFolder
) -> None:
    data_set = image()
    spoil(data_set)
    write(data_set, folder.path / "a.dcm")
    with pytest.raises(Unsendable, match=reason):
        outgoing(folder, "a.dcm")


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("../secret.dcm", "leads out of the payload"),
        ("/etc/hostname", "leads out of the payload"),
        ("link.dcm", "leads out of the payload"),
        ("operators", "no such file"),
        ("gone.dcm", "no such file"),
        ("a\0b", "no file's"),
        ("x" * 300, "no file's|no such file"),
        ("circle", "no file's|no such file"),
    ],
)
def test_names_that_lead_nowhere_or_elsewhere(uri: str, reason: str, folder: PayloadFolder) -> None:
    write(image(), folder.path.parent / "secret.dcm")
    (folder.path / "link.dcm").symlink_to(folder.path.parent / "secret.dcm")
    (folder.path / "circle").symlink_to(folder.path / "circle")
    (folder.path / "operators").mkdir(exist_ok=True)
    with pytest.raises(Unsendable, match=reason):
        outgoing(folder, uri)


def test_a_payload_that_was_removed(tmp_path: Path) -> None:
    with pytest.raises(Unsendable, match="the files of its job were removed"):
        outgoing(PayloadFolder(tmp_path / ("0" * 32)), "a.dcm")


WHOLE = sample("CT_small.dcm").read_bytes()[:4096]


@example(noise=b"\0", place=445, kept=0)  # a UID of a VR that there is not
@given(st.binary(max_size=300), st.integers(0, 2000), st.integers(0, 100))
@settings(max_examples=300, deadline=None)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_any_bytes_are_sendable_or_said_not_to_be(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, place: int, kept: int
) -> None:
    root = tmp_path_factory.getbasetemp() / ("f" * 32)
    root.mkdir(exist_ok=True)
    (root / "a.dcm").write_bytes(WHOLE[:place] + noise + WHOLE[place + kept :])
    with contextlib.suppress(Unsendable):
        file = outgoing(PayloadFolder(root), "a.dcm")
        assert file.sop_class
        assert file.sop_instance


FILES = st.lists(
    st.tuples(st.integers(1, 120), st.sampled_from([*PLAIN, "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.70"])),
    max_size=300,
)


@given(FILES)
def test_batches_hold_every_file_once_with_contexts_for_it(files: list[tuple[int, str]]) -> None:
    made = [
        Outgoing(
            uri=str(number), path=Path("x"), sop_class=f"1.2.{kind}", sop_instance=f"1.{number}",
            transfer_syntax=syntax, offset=0, size_bytes=1,
        )
        for number, (kind, syntax) in enumerate(files)
    ]  # fmt: skip
    found = batches(made)
    assert sorted((file.uri for batch in found for file in batch.files), key=int) == [file.uri for file in made]
    for batch in found:
        assert len(batch.contexts) <= MAXIMUM_CONTEXTS
        assert [int(file.uri) for file in batch.files] == sorted(int(file.uri) for file in batch.files)
        for file in batch.files:
            proposed = [c.transfer_syntaxes for c in batch.contexts if c.abstract_syntax == file.sop_class]
            assert (file.transfer_syntax,) in proposed, "its own syntax alone, so that nothing else is chosen"
            assert {syntax for syntaxes in proposed for syntax in syntaxes} >= set(PLAIN)
