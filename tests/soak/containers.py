"""Marks of operators in containers, from what the engine tells: they cannot write outside of their outputs."""

from __future__ import annotations

import threading
import uuid
from typing import Any

import docker
from soak.invariants import Mark

from clara_flow.infra.launchers.docker import JOB_LABEL, OPERATOR_LABEL


class ContainerStory:
    """What became of the containers of operators. `marks` are like those that operators make themselves."""

    def __init__(self) -> None:
        self.marks: list[Mark] = []
        self._running: dict[str, tuple[uuid.UUID, str]] = {}

    def take(self, event: dict[str, Any]) -> None:
        """One event of the engine: a container started or ended."""
        facts = event["Actor"]["Attributes"]
        if JOB_LABEL not in facts:
            return
        key = (uuid.UUID(facts[JOB_LABEL]), facts[OPERATOR_LABEL])
        if event["Action"] == "start":
            if key in self._running.values():
                self.marks.append(Mark("overlap", *key, event["timeNano"]))
            self._running[event["Actor"]["ID"]] = key
            self.marks.append(Mark("begin", *key, event["timeNano"]))
        else:
            self._running.pop(event["Actor"]["ID"], None)
            if facts["exitCode"] == "0":
                self.marks.append(Mark("end", *key, event["timeNano"]))


class ContainerMarks(ContainerStory):
    """Listens to the engine from its making on."""

    def __init__(self, base_url: str) -> None:
        super().__init__()
        self._api = docker.APIClient(base_url=base_url)
        self._events = self._api.events(decode=True, filters={"type": "container", "event": ["start", "die"]})
        self._thread = threading.Thread(target=self._listen, name="container-marks", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._events.close()
        self._thread.join()
        self._api.close()

    def _listen(self) -> None:
        for event in self._events:
            self.take(event)
