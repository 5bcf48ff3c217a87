"""`clara-flow dicom reports`: what peers asked of storage commitment and could not be told yet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clara_flow.cli.dicom_rows import Json, print_json, shown_time
from clara_flow.cli.records import DataDir, records
from clara_flow.cli.tables import print_table

if TYPE_CHECKING:
    from clara_flow.records.dicom_models import CommitmentReport


def reports(json_: Json = False, data_dir: DataDir = None) -> None:
    """List the reports of storage commitment that are owed to peers, and why they were not told.

    Example: clara-flow dicom reports
    """
    from clara_flow.records.commitment_reports import list_reports

    with records(data_dir) as engine:
        rows = list_reports(engine)
    if json_:
        print_json([_facts(row) for row in rows])
        return
    print_table(
        [_shown(row) for row in rows],
        "No report is owed.",
        notes=[row.message or ("" if row.not_before else "its association is open") for row in rows],
        right={"instances", "tries"},
    )


def _count(row: CommitmentReport) -> int:
    return sum(len(instances) for _, instances in row.asked)


def _facts(row: CommitmentReport) -> dict[str, Any]:
    return {
        "id": str(row.id),
        "callingAe": row.calling_ae,
        "calledAe": row.called_ae,
        "peer": row.peer,
        "instances": _count(row),
        "asked": row.created.isoformat(),
        "destination": row.destination,
        "attempts": row.attempts,
        "notBefore": row.not_before.isoformat() if row.not_before else None,
        "message": row.message,
    }


def _shown(row: CommitmentReport) -> dict[str, str]:
    return {
        "report": row.id.hex[:8],
        "asked by": row.calling_ae,
        "at": row.peer,
        "instances": str(_count(row)),
        "when": shown_time(row.created),
        "destination": row.destination or "-",
        "tries": str(row.attempts),
    }
