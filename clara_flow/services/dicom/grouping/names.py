"""Names of jobs, and of files in their payloads."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime

from clara_flow.records.dicom_models import Instance

LONGEST_JOB_NAME = 63
LONGEST_FILE_NAME = 64  # as a UID is


def job_name(called_ae: str, label: str, at: datetime) -> str:
    """`{called AE}-{label}-{UTC yyyyMMddHHmmss}`, cleaned as Clara does (specification of the DICOM adapter, 4.3).

    >>> job_name("BRAIN 1", "seg_a", datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC))
    'brain-1-seg-a-20260304050607'
    """
    raw = f"{called_ae}-{label}-{at.astimezone(UTC):%Y%m%d%H%M%S}"
    return re.sub(r"[^A-Za-z0-9]+", "-", raw).strip("-")[:LONGEST_JOB_NAME].strip("-").lower()


def payload_names(instances: Iterable[Instance]) -> dict[int, str]:
    """Names in the payload by the instances' ids: `<series>/<SOP Instance UID>.dcm`.

    Series are numbered from 1 in the order of their UIDs. A UID that is none keeps its digits and dots only; two that
    become equal so are told apart. The same instances get the same names whenever they are asked for.
    """
    rows = sorted(instances, key=lambda row: (row.series_uid, row.sop_instance_uid, row.id or 0))
    numbers = {uid: number for number, uid in enumerate(dict.fromkeys(row.series_uid for row in rows), start=1)}
    names: dict[int, str] = {}
    taken: set[str] = set()
    for row in rows:
        plain = re.sub(r"[^0-9.]", "", row.sop_instance_uid)[:LONGEST_FILE_NAME].strip(".") or "0"
        name, again = f"{numbers[row.series_uid]}/{plain}.dcm", 1
        while name in taken:
            again += 1
            name = f"{numbers[row.series_uid]}/{plain}-{again}.dcm"
        taken.add(name)
        names[row.id or 0] = name
    return names
