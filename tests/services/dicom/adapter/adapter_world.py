"""A whole platform that receives and sends DICOM, as its tests use it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa
from dicom_peers import MODALITY, data_set_of, store
from pydicom.dataset import Dataset
from tiny.pipelines import scripted, write_definition
from waiting import eventually

from clara_flow.deployments.trigger import House
from clara_flow.infra.images.catalog import installed
from clara_flow.records import deliveries, dicom_config, jobs
from clara_flow.records import dicom_group_queries as queries
from clara_flow.records.database import connect
from clara_flow.records.dicom_models import AeTitle, Delivery, Destination, Group, GroupState, SourceNode
from clara_flow.records.models import Job
from clara_flow.records.state_machine import JobState
from clara_flow.services.dicom.places import Places
from clara_flow.services.platform import PlatformHandle

SETTLED_S = 40.0


def answering(name: str = "answer", **keys: Any) -> dict[str, Any]:
    """The operator that makes a result of every instance of the payload."""
    return scripted(name, **{"container": {"image": "test/answering"}} | keys)


def registering(upstream: str, *destinations: str, name: str = "export") -> dict[str, Any]:
    """The bundled operator that registers all that `upstream` has made, for these destinations."""
    command = ["python", "register.py", "--agent", "ClaraSCU", "--data", json.dumps(destinations)]
    return {
        "name": name,
        "container": {"image": "clara/register-results", "command": command},
        "requests": {"cpu": 1, "memory": 256},
        "input": [{"from": upstream, "path": "/input"}],
    }


class AdapterWorld:
    """The platform of `handle`, with definitions of pipelines in `folder`."""

    def __init__(self, handle: PlatformHandle, folder: Path) -> None:
        self.handle, self.settings, self.folder = handle, handle.settings, folder
        self.port = handle.settings.dicom_port
        self.engine: sa.Engine = connect(handle.database_url)
        self.house = House(settings=self.settings, engine=self.engine, catalog=installed(self.settings.catalogs))
        self.places = Places.of(self.settings)
        self.gateway = httpx.Client(
            base_url=f"http://127.0.0.1:{self.settings.gateway_port}", trust_env=False, timeout=30
        )
        dicom_config.add_source(self.engine, SourceNode(ae_title=MODALITY, host="127.0.0.1"))

    def close(self) -> None:
        """Leave the platform alone."""
        self.gateway.close()
        self.engine.dispose()

    def pipeline(self, *operators: Mapping[str, Any], **keys: Any) -> str:
        """A definition of these operators; by default of one that copies. Its path."""
        path = self.folder / f"{uuid.uuid4().hex}.yaml"
        return str(write_definition(path, *(operators or (scripted("copy"),)), **keys))

    def aetitle(self, *pipelines: str, timeout_s: float = 1, **settings: str) -> str:
        """A new AE title of these pipelines (none: one that copies), known to the listeners. Its name and title."""
        name = f"T{uuid.uuid4().hex[:10]}".upper()
        named = {f"pipeline-p{number}": path for number, path in enumerate(pipelines or (self.pipeline(),), start=1)}
        row = AeTitle(name=name, ae_title=name, processor_settings={"timeout": str(timeout_s), **named, **settings})
        dicom_config.add_aetitle(self.engine, row)
        eventually(lambda: name in self.places.listener_config.read_text())
        return name

    def destination(self, port: int, **keys: Any) -> str:
        """A new destination on this machine. Its name."""
        name = f"D{uuid.uuid4().hex[:10]}".upper()
        facts = {"ae_title": "PEER", "host": "127.0.0.1", "port": port} | keys
        dicom_config.add_destination(self.engine, Destination(name=name, **facts))
        return name

    def send(self, aetitle: str, instances: Iterable[Dataset]) -> None:
        """Send them on one association; all are taken."""
        assert set(store(self.port, aetitle, instances)) == {0}

    def groups(self, aetitle: str, *states: GroupState) -> list[Group]:
        """Those of an AE title, the oldest first."""
        return queries.list_groups(self.engine, states=states, aetitle=aetitle)[::-1]

    def jobs(self, aetitle: str) -> list[Job]:
        """What its groups have become so far, in their order and that of labels."""
        made = [one for group in self.groups(aetitle) for one in queries.submissions_of(self.engine, group.id)]
        return [jobs.get_job(self.engine, one.job_id) for one in made if one.submitted]

    def completed(self, aetitle: str, count: int) -> list[Job]:
        """Its jobs, once there are so many and all have completed."""
        eventually(
            lambda: [job.state for job in self.jobs(aetitle)].count(JobState.STOPPED) >= count, within_s=SETTLED_S
        )
        found = self.jobs(aetitle)
        assert [job.status for job in found] == ["HEALTHY"] * count, [job.messages for job in found]
        return found

    def group_is(self, aetitle: str, state: GroupState) -> Group:
        """Its newest group, once it is so."""
        eventually(lambda: self.groups(aetitle)[-1:] and self.groups(aetitle)[-1].state is state, within_s=SETTLED_S)
        return self.groups(aetitle)[-1]

    def payload(self, job: Job) -> dict[str, bytes]:
        """The data sets in a job's payload by SOP Instance UID."""
        files = self.house.store.folder(job.payload_id).input.rglob("*.dcm")
        return {path.stem: data_set_of(path) for path in files}

    def deliveries(self, destination: str) -> list[Delivery]:
        """Those for a destination."""
        return deliveries.list_deliveries(self.engine, destination=destination)
