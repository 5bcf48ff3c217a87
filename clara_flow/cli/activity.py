"""What goes on in a platform that runs, as `clara-flow status` shows it: the DICOM side, and housekeeping."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from clara_flow.cli.tables import shown_duration
from clara_flow.settings import Settings

if TYPE_CHECKING:
    from clara_flow.infra.pool.housekeeping import Report
    from clara_flow.services.dicom_traffic import Target, Traffic
    from clara_flow.services.state_file import PlatformState


@dataclass(frozen=True, slots=True)
class Activity:
    """None: it is switched off, does not run or cannot be asked."""

    traffic: Traffic | None = None
    housekeeping: Report | None = None


def activity(settings: Settings, state: PlatformState) -> Activity:
    """Asks the tables and the files that the services leave. A database that is away is told by its service's state."""
    from clara_flow.errors import ClaraFlowError

    running = {service.name for service in state.services if service.state == "running"}
    report = traffic = None
    if "pool" in running:
        from clara_flow.infra.pool.housekeeping import last_report

        report = last_report(settings)
    if {"postgresql", "dicom"} <= running:
        from clara_flow.infra.postgres import records_url
        from clara_flow.records.database import connect
        from clara_flow.services import dicom_traffic

        engine = connect(records_url(settings), pool_size=1)
        try:
            traffic = dicom_traffic.traffic(settings, engine)
        except ClaraFlowError:
            traffic = None
        finally:
            engine.dispose()
    return Activity(traffic, report)


def activity_json(now: Activity) -> dict[str, Any]:
    """Members `dicom` and `housekeeping`, null where there is nothing to tell. Times are ISO 8601."""
    return {
        "dicom": _plain(asdict(now.traffic)) if now.traffic is not None else None,
        "housekeeping": asdict(now.housekeeping) if now.housekeeping is not None else None,
    }


def activity_lines(now: Activity) -> list[str]:
    """A heading and what there is to it, line by line."""
    facts = _of_traffic(now.traffic) if now.traffic is not None else []
    if now.housekeeping is not None:
        facts.append(("housekeeping", _of_housekeeping(now.housekeeping)))
    return [f"{heading:<12}  {text}" for heading, text in facts]


def _of_traffic(traffic: Traffic) -> list[tuple[str, str]]:
    titles = ", ".join(traffic.aetitles) or "no AE title"
    received = f"last instance {_ago(traffic.last_instance)}" if traffic.last_instance else "nothing yet"
    groups = [f"groups that are no jobs yet: {traffic.groups}"] if traffic.groups else []
    groups += [f"groups that failed: {traffic.failed_groups}"] if traffic.failed_groups else []
    return [
        ("listens", f"{titles} at {traffic.address}; associations open: {traffic.associations}"),
        ("received", "; ".join([received, *groups])),
        *(("destination", _of_target(target)) for target in traffic.targets),
    ]


def _of_target(target: Target) -> str:
    facts = []
    if not target.is_known:
        facts.append("is not there")
    elif target.paused:
        facts.append("is paused")
    else:
        facts.append(
            "works" if target.works else f"does not work ({target.trouble or 'see results list'}), is tried again"
        )
    if target.under_way:
        facts.append(f"{target.under_way} under way")
    if target.waiting:
        since = f", the oldest from {_ago(target.oldest)}" if target.oldest else ""
        facts.append(f"{target.waiting} wait{since}")
    if target.failed:
        facts.append(f"{target.failed} failed")
    return f"{target.name} {'; '.join(facts)}"


def _of_housekeeping(report: Report) -> str:
    done = ", ".join(f"{count} {kind}" for kind, count in report.repairs.items())
    problems = "; ".join(f"{step}: {problem}" for step, problem in report.problems.items())
    told = [f"last round {_ago(datetime.fromisoformat(report.at))}", f"mended since its start: {done or 'nothing'}"]
    return "; ".join([*told, *([f"cannot: {problems}"] if problems else [])])


def _ago(moment: datetime) -> str:
    return f"{shown_duration((datetime.now(UTC) - moment).total_seconds())} ago"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value.isoformat() if isinstance(value, datetime) else value
