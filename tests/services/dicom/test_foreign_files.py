"""Every file of pydicom and pydicom-data, in by each door: it comes back byte for byte, or is refused with a reason."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from dicom_peers import data_set_of
from postgres_fixture import database_url  # noqa: F401
from services.dicom.foreign_files import ForeignFile, NotSendable, foreign_files
from services.dicom.web.studies import application
from services.dicom.wire.conftest import Listening, options  # noqa: F401
from services.dicom.wire.scripted_peer import ScriptedPeer, context, context_results, data_pdu, store_rq
from services.gateway.serving import client, house_on, served
from tiny.pipelines import scripted, write_definition
from waiting import eventually

from clara_flow.deployments.trigger import House
from clara_flow.records import dicom_config
from clara_flow.records.dicom_models import AeTitle, Instance
from clara_flow.services.dicom.grouping.grouper import Grouper
from clara_flow.services.dicom.inbox import Inbox
from clara_flow.services.dicom.journal_entries import Opened, Stored
from clara_flow.services.dicom.listener_config import AeTitleRule, ListenerConfig, ListenerConfigFile, SourceRule
from clara_flow.services.dicom.places import Places
from clara_flow.services.dicom.spool import Spool
from clara_flow.services.dicom.web_multipart import parts
from clara_flow.services.dicom.wire.listener import ListenerOptions

PIECE_BYTES = 100_000
TITLES = [f"AE{number}" for number in range(20)]  # no SOP Instance UID has more files


@dataclass(frozen=True)
class Refusal:
    """What becomes of some files: by C-STORE ("": they are taken), by STOW-RS, and in the watched folder."""

    by_c_store: str
    by_stow: int
    in_folder: str
    names: frozenset[str]


REFUSALS = [
    Refusal(
        "not sent: no file meta information",
        0xC000,
        "it is no DICOM file with a file meta information",
        frozenset(
            {
                "OT-PAL-8-face.dcm",
                "test_files/ExplVR_BigEndNoMeta.dcm",
                "test_files/ExplVR_LitEndNoMeta.dcm",
                "test_files/dicomdirtests/TINY_ALPHA/README",
                "test_files/no_meta.dcm",
                "test_files/rtstruct.dcm",
                "test_files/zipMR.gz",
            }
        ),
    ),
    Refusal(
        "not sent: no SOP Class or Instance UID",
        0xC000,
        "its file meta information cannot be read",
        frozenset({"test_files/empty_charset_LEI.dcm"}),
    ),
    Refusal(
        "not sent: no SOP Class or Instance UID",
        0x0117,
        "its SOP Instance UID is no UID",  # it has none
        frozenset({"test_files/nested_priv_SQ.dcm"}),
    ),
    Refusal(
        "not sent: no Transfer Syntax UID",
        0xC000,
        "its file meta information cannot be read",
        frozenset({"test_files/meta_missing_tsyntax.dcm"}),
    ),
    Refusal(
        "context result 3",  # abstract syntax not supported: a directory is no instance to store
        0x0122,
        "its SOP class is none that is stored",
        frozenset(
            f"test_files/dicomdirtests/{name}"
            for name in (
                "DICOMDIR",
                "DICOMDIR-bigEnd",
                "DICOMDIR-empty.dcm",
                "DICOMDIR-implicit",
                "DICOMDIR-nooffset",
                "DICOMDIR-nopatient",
                "DICOMDIR-reordered",
                "TINY_ALPHA/DICOMDIR",
            )
        ),
    ),
    Refusal(
        "A900 no Study or Series Instance UID",
        0xA900,
        "it has no Study or Series Instance UID",
        frozenset(
            {
                "charset_files/chrSQEncoding.dcm",
                "charset_files/chrSQEncoding1.dcm",
                *(
                    f"palettes/{name}.dcm"  # colour palettes belong to no study
                    for name in ("fall", "hotiron", "hotmetalblue", "pet", "pet20step", "spring", "summer", "winter")
                ),
                "test_files/JPEGLSNearLossless_08.dcm",
                "test_files/JPEGLSNearLossless_16.dcm",
                "test_files/SC_rgb_jls_lossy_line.dcm",
                "test_files/SC_rgb_jls_lossy_sample.dcm",
                "test_files/UN_sequence.dcm",
                "test_files/priv_SQ.dcm",
            }
        ),
    ),
    Refusal(
        "A900 no Study or Series Instance UID",
        0xC000,
        "it is no DICOM file with a file meta information",  # its meta information lacks the group length
        frozenset({"test_files/no_meta_group_length.dcm"}),
    ),
    Refusal(
        "0117 the SOP instance UID is no UID",  # a hash stands there
        0xA900,
        "its UIDs differ from those of its file meta information",
        frozenset({"bad_sequence.dcm"}),
    ),
    Refusal(
        "",  # the command has the UIDs of the data set; a file has two sets of them, which must be equal (PS3.10 7.1)
        0xA900,
        "its UIDs differ from those of its file meta information",
        frozenset(
            {
                "charset_files/chrJapMulti.dcm",
                "charset_files/chrJapMultiExplicitIR6.dcm",
                "test_files/badVR.dcm",
                "test_files/rtdose.dcm",
                "test_files/rtdose_1frame.dcm",
                "test_files/rtdose_expb.dcm",
                "test_files/rtdose_expb_1frame.dcm",
                "test_files/rtplan.dcm",
                "test_files/rtplan_truncated.dcm",
            }
        ),
    ),
]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # about what is wrong in them on purpose


@dataclass(frozen=True)
class Dealt:
    """A file and where it goes: those with the same SOP Instance UID go to different AE titles."""

    file: ForeignFile
    title: str


@pytest.fixture(scope="module")
def dealt() -> list[Dealt]:
    """All of them."""
    seen: Counter[str] = Counter()
    made = []
    for file in foreign_files():
        try:
            uid = file.sendable().sop_instance
        except NotSendable:
            uid = ""
        made.append(Dealt(file, TITLES[seen[uid]]))
        seen[uid] += 1
    return made


@pytest.fixture
def house(database_url: str, tmp_path: Path) -> Iterator[House]:  # noqa: F811
    """Without processes; its AE titles wait long for more."""
    free = {"dicom_watermark_percent": 100, "dicom_reserve_mib": 0, "dicom_fsync": False}
    pipeline = str(write_definition(tmp_path / "tiny.yaml", scripted("a")))
    with house_on(database_url, tmp_path, dicom_inbox=tmp_path / "inbox", **free) as made:
        for title in TITLES:
            settings = {"timeout": "3600", "pipeline-any": pipeline}
            row = AeTitle(name=title, ae_title=title, processor_settings=settings)
            dicom_config.add_aetitle(made.engine, row)
        ListenerConfig(
            aetitles={title: AeTitleRule(name=title, ae_title=title) for title in TITLES},
            sources=(SourceRule(ae_title="MODALITY", host="127.0.0.1"),),
        ).write(Places.of(made.settings).listener_config)
        yield made


@pytest.fixture
def port(house: House, options: ListenerOptions) -> Iterator[int]:  # noqa: F811
    """Of a listener for that house."""
    places = Places.of(house.settings)
    config = ListenerConfigFile(places.listener_config).current()
    listening = Listening(replace(options, spool=places.spool, config=places.listener_config), config)
    yield listening.port
    listening.stop()


def arrived(house: House) -> dict[tuple[str, str], Stored]:
    """What journals tell of, by AE title and SOP Instance UID."""
    reader = Spool(Places.of(house.settings).spool).reader()
    entries = [entry for name in reader.names() for entry in reader.entries(name)]
    called = {entry.association: entry.called for entry in entries if isinstance(entry, Opened)}
    return {(called[one.association], one.sop_instance): one for one in entries if isinstance(one, Stored)}


@contextmanager
def grouping(house: House) -> Iterator[None]:
    """A grouper at work."""
    stop = threading.Event()
    thread = threading.Thread(target=Grouper(house, Places.of(house.settings).spool).run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(30)
        assert not thread.is_alive()


def c_store(port: int, file: ForeignFile, title: str) -> str:
    """Send its data set as it lies there; why it was not taken."""
    try:
        sent = file.sendable()
    except NotSendable as reason:
        return f"not sent: {reason}"
    with ScriptedPeer(port) as peer:
        accept = peer.associate(context(1, sent.sop_class, sent.transfer_syntax), called=title.encode())
        result, _ = context_results(accept)[1]
        if result != 0:
            peer.release()
            return f"context result {result}"
        pieces = [sent.data_set[at : at + PIECE_BYTES] for at in range(0, len(sent.data_set), PIECE_BYTES)]
        peer.send(data_pdu(1, store_rq(sent.sop_class, sent.sop_instance), command=True))
        for number, piece in enumerate(pieces, start=1):
            peer.send(data_pdu(1, piece, command=False, last=number == len(pieces)))
        answer = peer.read_command()
        peer.release()
    status, comment = int.from_bytes(answer[0x0900], "little"), answer.get(0x0902, b"").decode().strip()
    return f"{status:04X} {comment}" if status else ""


def stow(web: httpx.Client, file: ForeignFile, title: str) -> int | None:
    """POST it; the reason of its failure."""
    body = b"".join(parts("b0", [("application/dicom", iter([file.path.read_bytes()]))]))
    kind = 'multipart/related; type="application/dicom"; boundary=b0'
    answer = web.post(f"/dicom-web/{title}/studies", content=body, headers={"content-type": kind})
    failed = answer.json().get("00081198")
    assert answer.status_code == (409 if failed else 200)
    return int(failed["Value"][0]["00081197"]["Value"][0]) if failed else None


def test_by_c_store_and_back_by_wado(house: House, port: int, dealt: list[Dealt]) -> None:
    spool = Places.of(house.settings).spool
    refused: dict[str, str] = {}
    taken: dict[tuple[str, str], ForeignFile] = {}
    for one in dealt:
        if why := c_store(port, one.file, one.title):
            refused[one.file.name] = why
        else:
            taken[one.title, one.file.sendable().sop_instance] = one.file
    assert refused == {name: each.by_c_store for each in REFUSALS for name in each.names if each.by_c_store}
    kept = arrived(house)
    assert set(kept) == set(taken)
    for place, file in taken.items():
        assert data_set_of(spool / kept[place].path) == file.sendable().data_set, file.name
    with grouping(house), house.engine.connect() as connection:
        count = sa.select(sa.func.count()).select_from(Instance)
        eventually(lambda: connection.execute(count).scalar_one() == len(taken), within_s=60)
    with served(application(house), house.settings.gateway_port) as url, client(url) as web:
        for (title, instance), file in taken.items():
            study, series = kept[title, instance].study, kept[title, instance].series
            path = f"/dicom-web/{title}/studies/{study}/series/{series}/instances/{instance}"
            answer = web.get(path, headers={"accept": "application/dicom; transfer-syntax=*"})
            assert answer.content == (spool / kept[title, instance].path).read_bytes(), file.name


def test_by_stow(house: House, dealt: list[Dealt]) -> None:
    refused = {}
    with served(application(house), house.settings.gateway_port) as url, client(url) as web:
        for one in dealt:
            if (reason := stow(web, one.file, one.title)) is not None:
                refused[one.file.name] = reason
    assert refused == {name: each.by_stow for each in REFUSALS for name in each.names}
    assert_all_others_are_whole(house, dealt)


def test_by_the_watched_folder(house: House, dealt: list[Dealt]) -> None:
    places, folder = Places.of(house.settings), house.settings.dicom_inbox
    assert folder is not None
    inbox = Inbox(house.settings, Spool(places.spool), ListenerConfigFile(places.listener_config))
    for number, one in enumerate(dealt):
        path = folder / one.title / str(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(one.file.path.read_bytes())
        os.utime(path, (1e9, 1e9))
    inbox.look()
    assert inbox.look() == len(dealt)
    refused = {}
    for told in (folder / ".refused").rglob("*.reason.txt"):
        refused[dealt[int(told.name.split(".")[0])].file.name] = told.read_text().strip()
    assert refused == {name: each.in_folder for each in REFUSALS for name in each.names}
    assert_all_others_are_whole(house, dealt)


def assert_all_others_are_whole(house: House, dealt: list[Dealt]) -> None:
    """Whole files came in: they lie in the spool as they are, those that were refused do not."""
    refused = {name for each in REFUSALS for name in each.names}
    expected = sorted(one.file.path.read_bytes() for one in dealt if one.file.name not in refused)
    spool = Places.of(house.settings).spool
    assert sorted((spool / one.path).read_bytes() for one in arrived(house).values()) == expected
    assert len(list((spool / "instances").rglob("*.dcm"))) == len(expected)
