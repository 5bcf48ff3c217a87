"""Jobs in the records, at any point of their life, without anything that runs them."""

from __future__ import annotations

import itertools
import uuid
from typing import Any

import sqlalchemy as sa

from clara_flow.records import jobs, payloads, pipelines
from clara_flow.records.models import Job, Pipeline
from clara_flow.records.owner import Owner
from clara_flow.records.state_machine import JobEvent, OperatorEvent

OPERATORS = ("reader", "segment", "writer")


class JobMaker:
    """Jobs of one pipeline: reader -> segment -> writer."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine
        self.owner = Owner.of_this_process()

    def pipeline(self, name: str = "liver", text: str = "") -> Pipeline:
        """Its record; another `text` is another version."""
        edges = [{"source": a, "target": b, "output": ""} for a, b in itertools.pairwise(OPERATORS)]
        plan: dict[str, Any] = {"name": name, "operators": [{"name": o} for o in OPERATORS], "edges": edges}
        return pipelines.create_pipeline(self.engine, name=name, definition=text, plan=plan)

    def queued(self, **facts: Any) -> Job:
        """A job that waits."""
        payload = uuid.uuid4()
        payloads.create_payload(self.engine, payload_id=payload, input_digest="0", input_files=1, input_bytes=1)
        return jobs.create_job(
            self.engine,
            name="study",
            pipeline_id=self.pipeline().id,
            payload_id=payload,
            operators=OPERATORS,
            runtime="process",
            timeout_s=600,
            **facts,
        )

    def running(self, **facts: Any) -> Job:
        """A job of this process, whose first operator has completed and whose second one runs."""
        job = jobs.begin_job(self.engine, self.queued(**facts).id, self.owner)
        jobs.operator_started(self.engine, job.id, "reader", self.owner)
        jobs.operator_ended(self.engine, job.id, "reader", self.owner, OperatorEvent.COMPLETE, exit_code=0)
        jobs.operator_started(self.engine, job.id, "segment", self.owner)
        return job

    def completed(self, **facts: Any) -> Job:
        """A job that is over, and well."""
        job = self.running(**facts)
        jobs.operator_ended(self.engine, job.id, "segment", self.owner, OperatorEvent.COMPLETE, exit_code=0)
        jobs.operator_started(self.engine, job.id, "writer", self.owner)
        jobs.operator_ended(self.engine, job.id, "writer", self.owner, OperatorEvent.COMPLETE, exit_code=0)
        return jobs.finish_job(self.engine, job.id, self.owner, JobEvent.COMPLETE)

    def faulted(self, **facts: Any) -> Job:
        """A job whose second operator failed; the third one was skipped."""
        job = self.running(**facts)
        jobs.operator_ended(self.engine, job.id, "segment", self.owner, OperatorEvent.FAIL, exit_code=3, message="no")
        jobs.operator_ended(self.engine, job.id, "writer", self.owner, OperatorEvent.SKIP, message="segment did not")
        return jobs.finish_job(self.engine, job.id, self.owner, JobEvent.FAULT, messages=["segment exited with 3"])
