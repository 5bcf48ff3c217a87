"""SIGKILL at any moment: every instance is in exactly one group, once, and each group becomes each of its jobs once."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from dicom_spool import HandMade
from sqlmodel import col
from waiting import eventually

from clara_flow.deployments.trigger import House
from clara_flow.records import dicom_group_queries as queries
from clara_flow.records import jobs
from clara_flow.records.dicom_models import AeTitle, GroupState, Instance

PROGRAM = Path(__file__).with_name("grouper_program.py")


def start(house: House) -> subprocess.Popen[str]:
    url = house.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    command = [sys.executable, "-P", str(PROGRAM), str(house.settings.data_dir), url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "up\n"
    return process


@pytest.mark.parametrize("seed", [pytest.param(seed, marks=pytest.mark.soak if seed else ()) for seed in range(12)])
def test_kills_at_random(
    lone_house: House, spool: Path, pipeline: str, add_aetitle: Callable[..., AeTitle], seed: int
) -> None:
    chance, pause = random.Random(seed), threading.Event()  # noqa: S311
    add_aetitle(timeout="0.3", pipeline_a=pipeline, pipeline_b=pipeline)
    sent: dict[str, str] = {}
    journals = [HandMade(spool)]
    process = start(lone_house)
    try:
        for round_number in range(8 if seed == 0 else 25):
            for number in range(chance.randint(1, 3)):
                study = f"{round_number}.{number}"
                association = journals[-1].open()
                for _ in range(chance.randint(1, 40)):
                    sent[journals[-1].store(association, study=study)] = study
                if chance.random() < 0.8:
                    journals[-1].close(association)
            if chance.random() < 0.3:  # the listener dies, too
                journals.pop().end()
                journals.append(HandMade(spool))
            pause.wait(chance.random() * 0.6)
            process.kill()
            process.wait()
            process = start(lone_house)
        journals.pop().end()
        done = {GroupState.SUBMITTED}
        eventually(
            lambda: (
                not list((spool / "journals").glob("*.jsonl"))
                and {group.state for group in queries.list_groups(lone_house.engine)} == done
            ),
            within_s=90,
        )
        eventually(lambda: not list(spool.rglob("*.dcm")), within_s=30)
    finally:
        process.kill()
        process.wait()
    with lone_house.engine.connect() as connection:
        rows = connection.execute(
            sa.select(col(Instance.sop_instance_uid), col(Instance.group_id), col(Instance.superseded))
        ).all()
    assert Counter(row[0] for row in rows) == Counter(list(sent))
    assert not any(row[2] for row in rows)
    in_payloads: Counter[str] = Counter()
    for job in jobs.list_jobs(lone_house.engine):
        names = [file.name for file in lone_house.store.folder(job.payload_id).input_manifest().files]
        in_payloads.update(name.partition("/")[2].removesuffix(".dcm") for name in names)
    assert in_payloads == Counter({uid: 2 for uid in sent})  # noqa: C420  two pipelines
    assert len(jobs.list_jobs(lone_house.engine)) == 2 * len(queries.list_groups(lone_house.engine))
