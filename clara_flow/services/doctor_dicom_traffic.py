"""The doctor's look at a platform that runs: can anybody send, does what is sent become jobs, do results arrive?"""

from __future__ import annotations

from clara_flow.deployments.trigger import House
from clara_flow.errors import ClaraFlowError
from clara_flow.infra.images.catalog import installed
from clara_flow.infra.postgres import records_url
from clara_flow.records import dicom_config
from clara_flow.records.database import connect
from clara_flow.services.dicom.heartbeats import SILENT_AFTER_S, read_all
from clara_flow.services.dicom.places import Places
from clara_flow.services.dicom.wanted_destinations import missing_destinations
from clara_flow.services.dicom_traffic import Target, Traffic, traffic
from clara_flow.services.findings import Finding, Findings, Level
from clara_flow.services.state_file import StateFile
from clara_flow.settings import Settings

CHECK = "dicom traffic"
LOOPS = frozenset({"adapter", "snapshot", "grouper", "exporter", "cleanup", "inference"})  # of every adapter


def check_dicom_traffic(settings: Settings) -> Findings:
    """Nothing of a platform that is down: it is as it was left, and nobody can be asked."""
    if not settings.dicom_port or not StateFile(settings.data_dir).is_supervised():
        return
    engine = connect(records_url(settings), pool_size=1)
    try:
        house = House(settings=settings, engine=engine, catalog=installed(settings.catalogs))
        try:
            now = traffic(settings, engine)
        except ClaraFlowError as error:
            yield Finding(CHECK, Level.NOTE, f"cannot be looked at: {error}")
            return
        troubles = [
            *_loops(settings),
            *_in(now, settings),
            *_blocks(now),
            *_aetitles(house),
            *(found for one in now.targets for found in _out(one)),
        ]
    finally:
        engine.dispose()
    if troubles:
        yield from troubles
    else:
        senders = f"{now.sources} sources" if now.sources != 1 else "1 source"
        who = senders if settings.dicom_reject_unknown_sources else "everybody"
        targets = ", ".join(target.name for target in now.targets) or "no destination"
        yield Finding(CHECK, Level.OK, f"{who} may send to {', '.join(now.aetitles)}; results go to {targets}")


def _loops(settings: Settings) -> Findings:
    """Those that hang or break again and again; where they wait for something, their log says for what."""
    for beat in read_all(Places.of(settings).heartbeats):
        if beat.name in LOOPS and beat.age_s > SILENT_AFTER_S:
            text = f"the {beat.name} was last heard of {beat.age_s:.0f} s ago"
            yield Finding(CHECK, Level.NOTE, text, f"Look into {settings.data_dir / 'logs' / 'dicom.log'}.")


def _in(now: Traffic, settings: Settings) -> Findings:
    if not now.aetitles:
        text = "there is no AE title: nothing can be sent"
        yield Finding(CHECK, Level.NOTE, text, "clara-flow dicom aetitle add BRAIN --pipeline brain-extraction")
    if not now.sources and settings.dicom_reject_unknown_sources:
        text = "there is no source: every sender is rejected"
        yield Finding(CHECK, Level.NOTE, text, "clara-flow dicom source add AETITLE --host HOST")
    if now.failed_groups:
        text = f"no job could be made of what was received (groups: {now.failed_groups})"
        yield Finding(CHECK, Level.NOTE, text, "`clara-flow dicom groups list` tells why; then retry or discard them.")


def _blocks(now: Traffic) -> Findings:
    for name, why in now.unused_blocks.items():
        remedy = "Correct or delete that block in the Prefect UI, or what stands in its way."
        yield Finding(CHECK, Level.NOTE, f"the Prefect block {name} is not used: {why}", remedy)


def _aetitles(house: House) -> Findings:
    """Whether what comes can become jobs whose results have somewhere to go."""
    for row in dicom_config.list_aetitles(house.engine):
        if row.draining:
            continue
        try:
            missing = missing_destinations(house, row)
        except ClaraFlowError as error:
            text = f"what is sent to {row.ae_title} cannot become a job: {error}"
            yield Finding(CHECK, Level.NOTE, text, f"clara-flow dicom aetitle add {row.ae_title} ... --replace")
            continue
        for name in missing:
            text = f"results of {row.ae_title} go to {name}, which is no destination"
            yield Finding(CHECK, Level.NOTE, text, f"clara-flow dicom destination add {name} --aetitle ...")


def _out(target: Target) -> Findings:
    waits = f"{_deliveries(target.waiting)} waiting"
    if not target.works:
        text = f"destination {target.name} does not work ({target.trouble or 'its last tries failed'}); {waits}"
        yield Finding(CHECK, Level.NOTE, text, f"`clara-flow dicom destination test {target.name}` says what to do.")
    elif target.paused and target.waiting:
        text = f"destination {target.name} is paused; {waits}"
        yield Finding(CHECK, Level.NOTE, text, f"clara-flow dicom destination resume {target.name}")
    if not target.is_known and target.waiting:
        remedy = f"clara-flow dicom destination add {target.name} --aetitle AETITLE --host HOST --port PORT"
        yield Finding(CHECK, Level.NOTE, f"{target.name} is no destination; {waits}", remedy)
    if target.failed:
        text = f"{_deliveries(target.failed)} to {target.name} failed for good: nothing tries again by itself"
        remedy = f"`clara-flow results list --state failed --destination {target.name}` tells why; retry or discard."
        yield Finding(CHECK, Level.NOTE, text, remedy)


def _deliveries(count: int) -> str:
    return "1 delivery" if count == 1 else f"{count} deliveries"
