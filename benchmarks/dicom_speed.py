"""How quickly DICOM instances are received, against dcmtk's storescp and Orthanc, on the same machine in the same run.

500 CT slices of 512 x 512 16 bit (525 KB each) are sent by dcmtk's storescu over 1, 4 and 16 associations at once;
sender and receiver share the cores. The time runs from the senders' start to the end of the last one.

ours, fsync on      each instance and its journal line are on the disk before it is acknowledged
ours, fsync off     they are with the kernel, as with the others
storescp +B         dcmtk's receiver that keeps the bits, a process for each association; no fsync
Orthanc             indexes and decodes; no fsync
disk alone          nothing is received: each file is written, and it, its name and a line are flushed one after the
                    other. A sender that waits for each answer cannot get more with fsync, over one association.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import sqlalchemy as sa
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from sqlmodel import col

from benchmarks.common import Scale, bench, chain, free_port, summary, write
from clara_flow.records import dicom_config, jobs
from clara_flow.records.database import statements
from clara_flow.records.dicom_models import AeTitle, Association
from clara_flow.services.dicom.listener_config import AeTitleRule, ListenerConfig, ListenerConfigFile
from clara_flow.services.dicom.places import Places
from clara_flow.settings import environment_of, load_settings

CALLED = "BENCH"
PDU = "131072"
QUICK = {**os.environ, "TCP_NODELAY": "1"}  # without it dcmtk waits 40 ms for each answer
SLICES = {"full": 500, "smoke": 4}
STUDY = 10  # slices of a study that becomes a job
START_S = 20.0
LINE_BYTES = 900  # of a journal, for one instance


def make_study(folder: Path, count: int, *, as_studies: bool = False) -> list[Path]:
    """CT slices of noise, alike but for number and SOP Instance UID; `as_studies`: of another study each STUDY."""
    folder.mkdir()
    study, series = generate_uid(), generate_uid()
    random = np.random.default_rng(7)
    slices = []
    for number in range(count):
        if as_studies and number % STUDY == 0:
            study, series = generate_uid(), generate_uid()
        instance = Dataset()
        instance.file_meta = FileMetaDataset()
        instance.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        instance.file_meta.MediaStorageSOPClassUID = instance.SOPClassUID = CTImageStorage
        instance.file_meta.MediaStorageSOPInstanceUID = instance.SOPInstanceUID = generate_uid()
        instance.StudyInstanceUID, instance.SeriesInstanceUID = study, series
        instance.PatientName, instance.PatientID, instance.Modality = "Bench^Mark", "1", "CT"
        instance.InstanceNumber = number + 1
        instance.Rows = instance.Columns = 512
        instance.BitsAllocated, instance.BitsStored, instance.HighBit = 16, 16, 15
        instance.SamplesPerPixel, instance.PixelRepresentation = 1, 1
        instance.PhotometricInterpretation = "MONOCHROME2"
        instance.PixelData = random.integers(-1024, 3000, (512, 512), dtype=np.int16).tobytes()
        path = folder / f"{number:04d}.dcm"
        instance.save_as(path, enforce_file_format=True)
        slices.append(path)
    return slices


def send(port: int, slices: list[Path], associations: int, folder: Path) -> float:
    """Seconds until all are sent, dealt out over so many senders."""
    senders = []
    for number in range(associations):
        hand = folder / f"{associations}-{number}"
        if not hand.exists():
            hand.mkdir()
            for path in slices[number::associations]:
                (hand / path.name).symlink_to(path)
        senders.append(hand)
    command = ["storescu", "-aet", "SENDER", "-aec", CALLED, "-pdu", PDU, "--max-send-pdu", PDU, "+sd", "127.0.0.1"]
    began = time.perf_counter()
    running = [subprocess.Popen([*command, str(port), str(hand)], env=QUICK) for hand in senders if any(hand.iterdir())]
    assert all(sender.wait(300) == 0 for sender in running)
    return time.perf_counter() - began


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Until somebody answers there."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, "the receiver ended"
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        time.sleep(0.02)
    raise AssertionError("the receiver does not answer")


@contextmanager
def receiver(command: list[str], port: int, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process that receives, until the end of the block."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
    try:
        wait_for(port, process)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


@contextmanager
def ours(folder: Path, *, fsync: bool) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """One of our listener processes."""
    settings = load_settings(
        data_dir=folder,
        dicom_port=free_port(),
        dicom_fsync=fsync,
        dicom_reject_unknown_sources=False,
        dicom_maximum_associations=100,
    )
    rule = AeTitleRule(name=CALLED, ae_title=CALLED)
    ListenerConfig(aetitles={CALLED: rule}).write(Places.of(settings).listener_config)
    command = [sys.executable, "-P", "-m", "clara_flow.services.dicom.listener_process", "0"]
    environment = {**os.environ, **environment_of(settings)}
    with receiver(command, settings.dicom_port, env=environment) as process:
        yield settings.dicom_port, process


@contextmanager
def storescp(folder: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """dcmtk's."""
    folder.mkdir(parents=True)
    port = free_port()
    command = ["storescp", "--fork", "+B", "-pdu", PDU, "-od", str(folder), str(port)]
    with receiver(command, port, env=QUICK) as process:
        yield port, process


@contextmanager
def orthanc(folder: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """As it is packaged."""
    folder.mkdir(parents=True)
    port = free_port()
    path = folder / "orthanc.json"
    places = {"StorageDirectory": str(folder), "IndexDirectory": str(folder)}
    ports = {"DicomPort": port, "HttpPort": free_port(), "DicomCheckCalledAet": False, "DicomAlwaysAllowStore": True}
    path.write_text(json.dumps({**places, **ports, "RemoteAccessAllowed": False, "Plugins": []}))
    program = shutil.which("Orthanc", path="/usr/sbin:/usr/bin")
    assert program is not None
    with receiver([program, str(path)], port, env=QUICK) as process:
        yield port, process


def disk_alone(slices: list[Path], folder: Path) -> float:
    """Instances a second that the disk makes durable one by one."""
    folder.mkdir()
    contents = [path.read_bytes() for path in slices]
    names = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    lines = os.open(folder / "lines", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    began = time.perf_counter()
    for number, content in enumerate(contents):
        file = os.open(folder / f"{number}.dcm", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        os.write(file, content)
        os.fdatasync(file)
        os.close(file)
        os.fsync(names)
        os.write(lines, b"-" * LINE_BYTES)
        os.fdatasync(lines)
    rate = len(contents) / (time.perf_counter() - began)
    os.close(names)
    os.close(lines)
    shutil.rmtree(folder)
    return rate


def measured(receive: Any, slices: list[Path], folder: Path, rounds: int, counts: tuple[int, ...]) -> dict[str, Any]:
    """Instances a second for each number of associations, median of the rounds."""
    figures: dict[str, Any] = {}
    for count in counts:
        rates = []
        for number in range(rounds):
            place = folder / f"received-{count}-{number}"
            with receive(place) as (port, _):
                rates.append(len(slices) / send(port, slices, count, folder / "hands"))
            shutil.rmtree(place)
        figures[str(count)] = round(statistics.median(rates), 1)
    return figures


def hundred_associations(slices: list[Path], folder: Path) -> dict[str, Any]:
    """Resident memory of one listener while 100 associations send at once (MiB), before and at most."""
    from pynetdicom import AE

    with ours(folder / "hundred", fsync=True) as (port, process):
        seen = psutil.Process(process.pid)
        before = seen.memory_info().rss
        node = AE(ae_title="SENDER")
        node.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
        held = [node.associate("127.0.0.1", port, ae_title=CALLED) for _ in range(100 - 4)]
        assert all(association.is_established for association in held)
        most = before
        sender = threading.Thread(target=send, args=(port, slices, 4, folder / "hands"))
        sender.start()
        while sender.is_alive():
            most = max(most, seen.memory_info().rss)
            sender.join(0.02)
        for association in held:
            association.release()
    shutil.rmtree(folder / "hundred")
    return {"before_mib": before // 2**20, "at_most_mib": most // 2**20}


def released_to_running(rounds: int, slices: list[Path], folder: Path) -> dict[str, float]:
    """Seconds from an association's release, as the listener saw it, to the job that runs; completeness rule: released.

    Whole platform; a study for each round, of a no-op pipeline.
    """
    times = []
    with bench(dicom=True) as ground:
        engine, now = ground.house.engine, datetime.now(UTC)
        definition = chain(ground.folder, 1)
        settings = {"pipeline-noop": str(definition), "timeout": "0"}
        dicom_config.add_aetitle(
            engine, AeTitle(name=CALLED, ae_title=CALLED, processor_settings=settings, created=now, updated=now)
        )
        config = ListenerConfigFile(Places.of(ground.house.settings).listener_config)
        while CALLED not in config.current().aetitles:
            time.sleep(0.05)
        for number in range(rounds + 1):
            known = {job.id for job in jobs.list_jobs(engine)}
            send(ground.house.settings.dicom_port, slices[number * STUDY :][:STUDY], 1, folder / f"study-{number}")
            while not (made := [job for job in jobs.list_jobs(engine) if job.id not in known and job.started]):
                time.sleep(0.02)
            closed = sa.select(sa.func.max(col(Association.closed)))
            with statements(engine) as connection:
                released = connection.execute(closed).scalar_one()
            if number:  # the first one warms up
                times.append((made[0].started - released).total_seconds())
    return summary(times)


def main(scale: Scale, results: Path) -> Path:
    """Measure and write the result."""
    smoke = scale.rounds == 1
    rounds, counts = (1, (1, 2)) if smoke else (3, (1, 4, 16))
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    with tempfile.TemporaryDirectory(prefix="clara-flow-dicom-") as name:
        folder = Path(name)
        slices = make_study(folder / "study", SLICES["smoke" if smoke else "full"])
        (folder / "hands").mkdir()
        receivers: dict[str, Any] = {
            "ours, fsync on": lambda place: ours(place, fsync=True),
            "ours, fsync off": lambda place: ours(place, fsync=False),
        }
        if shutil.which("storescp"):
            receivers["storescp +B"] = storescp
        if not smoke and shutil.which("Orthanc", path="/usr/sbin:/usr/bin"):
            receivers["Orthanc"] = orthanc
        rates = {name: measured(receive, slices, folder, rounds, counts) for name, receive in receivers.items()}
        floor = statistics.median(disk_alone(slices, folder / "disk") for _ in range(rounds))
        figures: dict[str, Any] = {
            "instances": len(slices),
            "instance_bytes": slices[0].stat().st_size,
            "instances_per_second_by_associations": rates,
            "disk_alone_instances_per_second": round(floor, 1),
            "ours, fsync on / disk alone": round(rates["ours, fsync on"]["1"] / floor, 2),
            "times": {
                f"{mine} / {theirs}": {
                    count: round(rates[mine][count] / rates[theirs][count], 2) for count in rates[theirs]
                }
                for mine in ("ours, fsync on", "ours, fsync off")
                for theirs in ("storescp +B", "Orthanc")
                if theirs in rates
            },
            "aim": {
                "over storescp": {"1": 1.2, "4": 1.0},
                "over Orthanc": 3,
                "memory_mib": 300,
                "released_to_running_s": 0.6,
            },
        }
        if shutil.which("storescu"):
            studies = make_study(folder / "studies", STUDY * (2 * rounds + 2), as_studies=True)
            for number in range(2 * rounds + 1):
                (folder / f"study-{number}").mkdir()
            figures["released_to_running"] = released_to_running(2 * rounds, studies, folder)
        if not smoke:
            figures["memory_with_100_associations"] = hundred_associations(slices, folder)
    return write(results, "dicom_speed", figures)
