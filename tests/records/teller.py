"""Tells the tables what journals would tell them."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from clara_flow.records import dicom_ingest
from clara_flow.records.dicom_ingest import Closed, GroupingRule, Ingested, Opened, Stored

NOW = datetime(2026, 5, 6, tzinfo=UTC)


class Teller:
    """Tells the tables lines of one journal."""

    def __init__(self, engine: sa.Engine, journal: str = "j", **rules: GroupingRule) -> None:
        self.engine, self.journal, self.offset = engine, journal, 0
        self.rules: Mapping[str, GroupingRule] = rules or {"BRAIN": GroupingRule()}
        self.count = 0

    def tell(self, *lines: Any) -> Ingested:
        told = dicom_ingest.ingest(
            self.engine, self.journal, lines, offset=self.offset, new_offset=self.offset + len(lines), rules=self.rules
        )
        self.offset += len(lines)
        return told

    def open(self, **facts: Any) -> Opened:
        plain = {"calling_ae": "MR", "called_ae": "BRAIN", "aetitle": "BRAIN"}
        return Opened(**{"association": uuid.uuid4(), "at": NOW, **plain, **facts})

    def store(self, opened: Opened, uid: str, study: str = "1.2", **facts: Any) -> Stored:
        self.count += 1
        plain: dict[str, Any] = {
            "path": f"instances/{opened.association}/{self.count}.dcm", "size_bytes": 10, "sop_class_uid": "1.1",
            "series_uid": f"{study}.1", "transfer_syntax": "1.9",
        }  # fmt: skip
        return Stored(
            association=opened.association, at=NOW, sop_instance_uid=uid, study_uid=study, **{**plain, **facts}
        )  # fmt: skip

    def close(self, opened: Opened, how: str = "released") -> Closed:
        return Closed(association=opened.association, at=NOW, how=how)
