"""Prefect blocks of the type DICOM node as sources and destinations: a loop that lets the tables follow them."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

import sqlalchemy as sa

from clara_flow.errors import ClaraFlowError, InputError
from clara_flow.records.dicom_blocks import Followed, follow_destinations, follow_sources
from clara_flow.records.dicom_models import Destination, DestinationKind, SourceNode
from clara_flow.records.outages import Outage
from clara_flow.services.dicom.config_check import check_destination, check_source
from clara_flow.services.dicom.heartbeats import SILENT_AFTER_S, Beat, Heartbeats

if TYPE_CHECKING:
    from clara_flow.blocks.dicom_node import SavedNode, SavedNodes

log = logging.getLogger(__name__)

HEARTBEAT = "blocks"
LOOK_S = 3.0

Row = TypeVar("Row", SourceNode, Destination)


class BlockNodes:
    """Looks at the blocks every `look_s`. A Prefect server that is away changes nothing."""

    def __init__(self, engine: sa.Engine, api_url: str, heartbeats: Heartbeats, *, look_s: float = LOOK_S) -> None:
        self.engine, self.api_url, self.look_s = engine, api_url, look_s
        self._heartbeats = heartbeats
        self._outage = Outage(log, "what follows Prefect's blocks")
        self._told: dict[str, str] = {}

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set."""
        while not stop.is_set():
            self.look()
            stop.wait(self.look_s)

    def look(self) -> None:
        """One round."""
        from clara_flow.blocks.dicom_node import saved_nodes  # it takes Prefect, which is slow to import

        try:
            saved = saved_nodes(self.api_url)
            unused = self.follow(saved) if saved is not None else {}
        except ClaraFlowError as error:
            self._outage.met(error)
            self._heartbeats.beat(HEARTBEAT, problem=type(error).__name__, unused=json.dumps(self._told))
            return
        self._outage.over()
        for name in sorted(name for name, why in unused.items() if self._told.get(name) != why):
            log.warning("the Prefect block %s is not used: %s", name, unused[name])
        self._told = unused
        self._heartbeats.beat(
            HEARTBEAT, blocks=len(saved.nodes) if saved else 0, not_used=len(unused), unused=json.dumps(unused)
        )

    def follow(self, saved: SavedNodes) -> dict[str, str]:
        """Bring the tables in step. Returns the blocks that are not used, with the reason. Raises ServiceError."""
        unreadable = {one.name: one.fault for one in saved.nodes if one.node is None}
        faults = unreadable.copy()
        destinations = _wanted(saved.nodes, _destination, lambda row: row.name.lower(), faults)
        done = follow_destinations(self.engine, list(destinations.values()), unclear=faults, since=saved.since)
        _tell("destination", done, destinations, faults)
        others = unreadable.copy()
        sources = _wanted(saved.nodes, _source, lambda row: row.ae_title, others)
        done = follow_sources(self.engine, list(sources.values()), unclear=others, since=saved.since)
        _tell("source", done, sources, others)
        names = faults.keys() | others.keys()
        return {
            name: "; ".join(dict.fromkeys(found[name] for found in (faults, others) if name in found))
            for name in sorted(names)
        }


def unused_blocks(heard: Iterable[Beat]) -> dict[str, str]:
    """The blocks that are not used, with the reason, as the loop said last; none where it is silent."""
    for beat in heard:
        if beat.name == HEARTBEAT and beat.age_s < SILENT_AFTER_S:
            with suppress(ValueError, TypeError, AttributeError):
                return {str(name): str(why) for name, why in json.loads(str(beat.facts.get("unused", "{}"))).items()}
    return {}


def _wanted(
    nodes: Iterable[SavedNode],
    make: Callable[[SavedNode], Row | None],
    key_of: Callable[[Row], str],
    faults: dict[str, str],
) -> dict[str, Row]:
    """The rows that blocks ask for, by key; what is wrong with a block goes into `faults`."""
    found: dict[str, Row] = {}
    for saved in nodes:
        try:
            row = make(saved)
        except InputError as error:
            faults[saved.name] = str(error)
            continue
        if row is None:
            continue
        first = found.setdefault(key_of(row), row)
        if first is not row:
            faults[saved.name] = f"the block {first.block!r} is {key_of(row)!r} already"
    return found


def _destination(saved: SavedNode) -> Destination | None:
    """The destination that a block asks for. Raises InputError."""
    node = saved.node
    if node is None or not node.is_destination:
        return None
    is_stow = bool(node.url.strip())
    row = Destination(
        name=saved.name,
        kind=DestinationKind.STOW if is_stow else DestinationKind.DIMSE,
        ae_title="" if is_stow else node.ae_title,
        host="" if is_stow else node.host,
        port=None if is_stow else node.port,
        url=node.url,
        tls=node.tls,
        calling_ae=node.calling_ae,
        concurrency=node.concurrency,
        storage_commitment=node.storage_commitment,
        deidentify=node.deidentify,
        credentials=saved.name if is_stow and node.has_secret else "",
        block=saved.name,
        block_updated=saved.updated,
    )
    return check_destination(row)


def _source(saved: SavedNode) -> SourceNode | None:
    """The source that a block asks for. Raises InputError."""
    node = saved.node
    if node is None or not node.is_source:
        return None
    row = SourceNode(ae_title=node.ae_title, host=node.host, block=saved.name, block_updated=saved.updated)
    return check_source(row)


def _tell(what: str, done: Followed, wanted: Mapping[str, Row], faults: dict[str, str]) -> None:
    for key in done.put:
        log.info("%s %s is as its Prefect block says from now on", what, key)
    for key in done.removed:
        log.info("%s %s went with its Prefect block", what, key)
    for key in done.freed:
        log.warning("%s %s stays, though its block is gone: Prefect's database is another one", what, key)
    for key in done.taken:
        faults[wanted[key].block] = f"there is a {what} {key!r} already, made by REST or command line: delete that one"
