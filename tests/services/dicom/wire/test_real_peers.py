"""dcmtk and pynetdicom against our listener: what they send is what lies on the disk, byte for byte."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import dcmtk
import pydicom
import pytest
from pydicom.uid import AllTransferSyntaxes
from pynetdicom import AE, build_context
from pynetdicom.dsutils import encode
from pynetdicom.sop_class import MRImageStorage, Verification  # type: ignore[attr-defined]
from services.dicom.foreign_files import foreign_files
from services.dicom.wire.conftest import Listening
from services.dicom.wire.scripted_peer import associate_rq, context, data_set, store_rq
from waiting import eventually

from clara_flow.services.dicom.listener_config import AeTitleRule, ListenerConfig, SourceRule

JPIP_HTJ2K_DEFLATED = "1.2.840.10008.1.2.4.205"  # pynetdicom sends it without deflating it
TRAILING_PADDING = 0xFFFC_FFFC


def echoscu(listening: Listening, *options: str, calling: str = "MODALITY", called: str = "BRAIN") -> tuple[int, str]:
    """Its exit status, and what it says."""
    done = dcmtk.run("echoscu", "-aet", calling, "-aec", called, *options, "127.0.0.1", str(listening.port))
    return done.returncode, done.stderr


def test_echoscu(listening: Listening) -> None:
    assert echoscu(listening) == (0, "")
    assert echoscu(listening, "--repeat", "20", "--propose-pc", "128") == (0, "")
    assert echoscu(listening, "--abort") == (0, "")
    eventually(lambda: not listening.listener.counters.open)


def sample(name: str) -> Path:
    """A file that pydicom brings."""
    return next(file.path for file in foreign_files() if file.path.name == name)


def storescu(listening: Listening, *options: str, files: Sequence[Path] = ()) -> subprocess.CompletedProcess[str]:
    """Send these files, by default one, to BRAIN."""
    node = ["-aet", "MODALITY", "-aec", "BRAIN", "127.0.0.1", str(listening.port)]
    return dcmtk.run("storescu", *options, *node, *(files or [sample("CT_small.dcm")]))


def test_rejections_as_echoscu_tells_them(listen: Callable[..., Listening]) -> None:
    listening, deaf = listen(maximum_associations=1), listen(verification=False)
    for peer, caller, words in (
        (listening, {"calling": "STRANGER"}, ("Rejected Permanent", "Service User", "Calling AE Title Not Recognized")),
        (listening, {"called": "NOBODY"}, ("Rejected Permanent", "Service User", "Called AE Title Not Recognized")),
        (deaf, {}, ("Rejected Permanent", "Service User", "App Context Name Not Supported")),
    ):
        status, said = echoscu(peer, **caller)
        assert status != 0
        assert all(word in said for word in words), said
    with listening.peer() as first:
        first.associate()
        status, said = echoscu(listening)
        first.release()
    assert status != 0
    assert "Rejected Transient" in said
    assert "Local Limit Exceeded" in said
    assert echoscu(listening) == (0, "")


@pytest.mark.parametrize(
    ("identity", "is_taken"),
    [
        (("-usr", "mri", "-pwd", "opensesame"), True),
        (("-usr", "mri", "-pwd", "opensesame", "-rsp"), True),
        (("-usr", "mri", "-pwd", "wrong"), False),
        (("-usr", "ct", "-pwd", "opensesame"), False),
        (("-usr", "mri"), False),
        (("--jwt", "TOKEN"), False),
        ((), False),
    ],
    ids=str,
)
def test_user_identity_of_storescu(
    listen: Callable[..., Listening],
    config: ListenerConfig,
    tmp_path: Path,
    identity: tuple[str, ...],
    is_taken: bool,
) -> None:
    secret = "salt$" + hashlib.sha256(b"salt" + b"opensesame").hexdigest()
    rule = SourceRule(ae_title="MODALITY", host="127.0.0.1", user_name="mri", user_secret=secret)
    listening = listen(config=replace(config, sources=(rule,)))
    (tmp_path / "token").write_text("a.json.token")
    options = [str(tmp_path / "token") if part == "TOKEN" else part for part in identity]
    sent = storescu(listening, *options)
    assert (sent.returncode == 0, len(listening.stored())) == (is_taken, int(is_taken)), sent.stderr
    if not is_taken:
        assert "Rejected Permanent" in sent.stderr


def test_there_is_nothing_to_query(listening: Listening) -> None:
    """The listener stores; queries are for DICOMweb. findscu is told so when contexts are negotiated."""
    asked = dcmtk.run(
        "findscu", "-S", "-aet", "MODALITY", "-aec", "BRAIN", "-k", "QueryRetrieveLevel=STUDY", "127.0.0.1",
        str(listening.port),
    )  # fmt: skip
    assert asked.returncode != 0
    assert "No Acceptable Presentation Contexts" in asked.stderr
    assert listening.files() == []


@pytest.mark.parametrize("pdu_bytes", [4096, 131072])
def test_storescu(listening: Listening, pdu_bytes: int) -> None:
    files = [sample(name) for name in ("CT_small.dcm", "MR_small.dcm", "rtplan.dcm")]
    sent = storescu(listening, "--max-send-pdu", str(pdu_bytes), files=files)
    assert sent.returncode == 0, sent.stderr
    assert [closed.how for closed in listening.closed()] == ["released"]
    for path, entry in zip(files, listening.stored(), strict=True):
        stored, original = pydicom.dcmread(listening.options.spool / entry.path), pydicom.dcmread(path)
        original.pop(TRAILING_PADDING, None)  # dcmtk leaves it out
        assert stored == original
        assert entry.study == original.StudyInstanceUID


def test_storescu_aborts_in_the_middle(listening: Listening) -> None:
    storescu(listening, "--abort")
    assert len(listening.stored()) == 1
    eventually(lambda: [closed.how for closed in listening.closed()] == ["aborted"])


def pynetdicom_app(listening: Listening, name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """One of pynetdicom's programs, run to its end."""
    node = ["127.0.0.1", str(listening.port), *map(str, arguments), "-aet", "MODALITY", "-aec", "BRAIN"]
    command = [sys.executable, "-m", "pynetdicom", name, *node]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_programs_of_pynetdicom(listening: Listening) -> None:
    files = [sample(name) for name in ("CT_small.dcm", "MR_small.dcm")]
    echoed, sent = pynetdicom_app(listening, "echoscu"), pynetdicom_app(listening, "storescu", *files)
    assert (echoed.returncode, sent.returncode) == (0, 0), sent.stderr
    stored = [pydicom.dcmread(listening.options.spool / entry.path) for entry in listening.stored()]
    assert stored == [pydicom.dcmread(path) for path in files]


@pytest.mark.parametrize("syntax", [syntax for syntax in AllTransferSyntaxes if syntax != JPIP_HTJ2K_DEFLATED])
def test_pynetdicom_and_every_transfer_syntax(listening: Listening, syntax: str) -> None:
    """It does not look at pixels, so the bytes of one syntax may be said to be those of another."""
    dataset = pydicom.dcmread(io.BytesIO(data_set()), force=True)
    dataset = pydicom.Dataset({element.tag: element for element in dataset})
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    ae = AE(ae_title="MODALITY")
    ae.add_requested_context(MRImageStorage, syntax)
    association = ae.associate("127.0.0.1", listening.port, ae_title="BRAIN")
    assert association.is_established
    assert association.accepted_contexts[0].transfer_syntax == [syntax]
    assert association.send_c_store(dataset).Status == 0
    association.release()
    assert association.is_released
    [entry] = listening.stored()
    assert entry.transfer_syntax == syntax
    uid = pydicom.uid.UID(syntax)
    sent = encode(dataset, uid.is_implicit_VR, uid.is_little_endian, uid.is_deflated)
    assert listening.data_sets() == [sent]
    stored = pydicom.dcmread(listening.options.spool / entry.path)
    assert stored.file_meta.TransferSyntaxUID == syntax
    assert stored.file_meta.SourceApplicationEntityTitle == "MODALITY"
    assert stored.SOPInstanceUID == dataset.SOPInstanceUID
    assert stored.PixelData == dataset.PixelData


def test_deflated_by_hand(listening: Listening) -> None:
    deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    data = deflate.compress(data_set()) + deflate.flush()
    with listening.peer() as peer:
        peer.associate(context(1, MRImageStorage, JPIP_HTJ2K_DEFLATED))
        assert peer.store(store_rq(), data) == 0
        assert peer.store(store_rq(), data_set()) == 0xC000  # as pynetdicom sends it
        peer.release()
    assert listening.data_sets() == [data]


def test_pynetdicom_verifies(listening: Listening) -> None:
    ae = AE(ae_title="MODALITY")
    association = ae.associate("127.0.0.1", listening.port, [build_context(Verification)], ae_title="BRAIN")
    assert association.send_c_echo().Status == 0
    association.release()


def test_25_associations_to_five_ae_titles_at_once_and_no_26th(
    listen: Callable[..., Listening], config: ListenerConfig
) -> None:
    rules = [AeTitleRule(name=f"ae{number}", ae_title=f"AE{number}") for number in range(5)]
    listening = listen(
        config=replace(config, aetitles={rule.ae_title: rule for rule in rules}), maximum_associations=25
    )
    all_are_in, go_on = threading.Barrier(26), threading.Barrier(26)
    statuses: list[list[int]] = []

    def send(number: int) -> None:
        with listening.peer() as peer:
            peer.associate(called=f"AE{number % 5}".encode())
            all_are_in.wait(20)
            go_on.wait(20)
            uids = [f"1.2.{number}.{each}" for each in range(8)]
            statuses.append([peer.store(store_rq(sop_instance=uid), data_set(SOPInstanceUID=uid)) for uid in uids])
            peer.release()

    threads = [threading.Thread(target=send, args=(number,)) for number in range(25)]
    for thread in threads:
        thread.start()
    all_are_in.wait(20)
    with listening.peer() as one_more:
        one_more.send(associate_rq(called=b"AE0"))
        assert tuple(one_more.read_pdu()[7:10]) == (2, 3, 2)  # for now, by the provider: local limit exceeded
    go_on.wait(20)
    for thread in threads:
        thread.join(60)
    assert statuses == [[0] * 8] * 25
    assert len({entry.sop_instance for entry in listening.stored()}) == 200
    assert sorted(opened.called for opened in listening.opened()) == sorted([f"AE{n}" for n in range(5)] * 5)
    assert [closed.how for closed in listening.closed()] == ["released"] * 25
