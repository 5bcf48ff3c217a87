"""The life of a job and of its operators, as two pure state machines: an event in, a new phase and effects out.

No clock, no database, no I/O: the caller stores the new phase first and then performs the effects. A phase is finer
than what the Platform API shows; its `state` and `status` are the API's words. Nothing leaves STOPPED.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from clara_flow.errors import InvalidTransition


class JobState(StrEnum):
    """The Platform API's job states. UNKNOWN is reserved and never stored."""

    UNKNOWN = "UNKNOWN"
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"


class JobStatus(StrEnum):
    """The Platform API's job statuses. UNKNOWN is reserved and never stored."""

    UNKNOWN = "UNKNOWN"
    HEALTHY = "HEALTHY"
    FAULTED = "FAULTED"
    CANCELED = "CANCELED"
    EVICTED = "EVICTED"
    TERMINATED = "TERMINATED"


class JobPriority(StrEnum):
    """The Platform API's priorities, lowest first."""

    LOWER = "LOWER"
    NORMAL = "NORMAL"
    HIGHER = "HIGHER"
    IMMEDIATE = "IMMEDIATE"


class JobPhase(StrEnum):
    """Where a job stands."""

    CREATED = "created"
    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAULTED = "faulted"
    CANCELED = "canceled"
    EVICTED = "evicted"
    TERMINATED = "terminated"

    @property
    def state(self) -> JobState:
        """The API's state of this phase."""
        return JOB_STANDING[self][0]

    @property
    def status(self) -> JobStatus:
        """The API's status of this phase."""
        return JOB_STANDING[self][1]

    @classmethod
    def of(cls, state: JobState, status: JobStatus, *, queued: bool) -> JobPhase:
        """The phase that is stored as state and status; `queued` parts the two PENDING ones.

        Raises InvalidTransition for a pair that no phase has.
        """
        if (state, status) == JOB_STANDING[cls.CREATED]:
            return cls.QUEUED if queued else cls.CREATED
        for phase, standing in JOB_STANDING.items():
            if standing == (state, status):
                return phase
        raise InvalidTransition(f"no job can be {state}/{status}", state=state, status=status)


JOB_STANDING = {
    JobPhase.CREATED: (JobState.PENDING, JobStatus.HEALTHY),
    JobPhase.QUEUED: (JobState.PENDING, JobStatus.HEALTHY),
    JobPhase.RUNNING: (JobState.RUNNING, JobStatus.HEALTHY),
    JobPhase.COMPLETED: (JobState.STOPPED, JobStatus.HEALTHY),
    JobPhase.FAULTED: (JobState.STOPPED, JobStatus.FAULTED),
    JobPhase.CANCELED: (JobState.STOPPED, JobStatus.CANCELED),
    JobPhase.EVICTED: (JobState.STOPPED, JobStatus.EVICTED),
    JobPhase.TERMINATED: (JobState.STOPPED, JobStatus.TERMINATED),
}


class JobEvent(StrEnum):
    """What can happen to a job."""

    START = "start"  # asked to run: it may be taken now
    BEGIN = "begin"  # a runner took it
    COMPLETE = "complete"  # every operator completed
    FAULT = "fault"  # an operator failed, or it could not be deployed
    REQUEST_CANCEL = "request-cancel"  # a person asked; a running job's operators must be stopped first
    CANCEL = "cancel"  # its runner stopped it on request
    EXPIRE = "expire"  # it ran past its timeout, which counts from BEGIN
    EVICT = "evict"  # its runner is gone, and it shall not be resumed
    REQUEUE = "requeue"  # back to the queue: it was preempted, its runner or node is gone, or its runner never began


class JobEffect(StrEnum):
    """What must be done after the new phase is stored."""

    OFFER = "offer"  # tell the runners that a job waits
    STOP_OPERATORS = "stop-operators"  # tell its runner to stop it
    RELEASE = "release"  # it neither holds nor waits for anything any more


JOB_TRANSITIONS: dict[tuple[JobPhase, JobEvent], tuple[JobPhase, tuple[JobEffect, ...]]] = {
    (JobPhase.CREATED, JobEvent.START): (JobPhase.QUEUED, (JobEffect.OFFER,)),
    (JobPhase.CREATED, JobEvent.FAULT): (JobPhase.FAULTED, (JobEffect.RELEASE,)),
    (JobPhase.CREATED, JobEvent.REQUEST_CANCEL): (JobPhase.CANCELED, (JobEffect.RELEASE,)),
    (JobPhase.QUEUED, JobEvent.BEGIN): (JobPhase.RUNNING, ()),
    (JobPhase.QUEUED, JobEvent.FAULT): (JobPhase.FAULTED, (JobEffect.RELEASE,)),
    (JobPhase.QUEUED, JobEvent.REQUEST_CANCEL): (JobPhase.CANCELED, (JobEffect.RELEASE,)),
    # It was admitted, and its runner never began.
    (JobPhase.QUEUED, JobEvent.REQUEUE): (JobPhase.QUEUED, (JobEffect.RELEASE, JobEffect.OFFER)),
    (JobPhase.RUNNING, JobEvent.COMPLETE): (JobPhase.COMPLETED, (JobEffect.RELEASE,)),
    (JobPhase.RUNNING, JobEvent.FAULT): (JobPhase.FAULTED, (JobEffect.RELEASE,)),
    (JobPhase.RUNNING, JobEvent.REQUEST_CANCEL): (JobPhase.RUNNING, (JobEffect.STOP_OPERATORS,)),
    (JobPhase.RUNNING, JobEvent.CANCEL): (JobPhase.CANCELED, (JobEffect.RELEASE,)),
    (JobPhase.RUNNING, JobEvent.EXPIRE): (JobPhase.TERMINATED, (JobEffect.RELEASE,)),
    (JobPhase.RUNNING, JobEvent.EVICT): (JobPhase.EVICTED, (JobEffect.STOP_OPERATORS, JobEffect.RELEASE)),
    (JobPhase.RUNNING, JobEvent.REQUEUE): (
        JobPhase.QUEUED,
        (JobEffect.STOP_OPERATORS, JobEffect.RELEASE, JobEffect.OFFER),
    ),
}


def advance_job(
    phase: JobPhase, event: JobEvent, *, job: str = "", story: Sequence[str] = ()
) -> tuple[JobPhase, tuple[JobEffect, ...]]:
    """The phase after `event`, and what to do once it is stored.

    Raises InvalidTransition (with `job` and its `story`, the events so far) where there is no such step.
    """
    try:
        return JOB_TRANSITIONS[phase, event]
    except KeyError:
        raise InvalidTransition(
            f"job {job} is {phase}: it cannot {event}. Its story: {', '.join(story) or 'none'}",
            job=job,
            phase=phase,
            event=event,
            story=tuple(story),
        ) from None


class OperatorStatus(StrEnum):
    """The Platform API's operator statuses."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAULTED = "FAULTED"


class OperatorPhase(StrEnum):
    """Where an operator of a job stands; the truer name behind the API's status."""

    PENDING = "Pending"
    WAITING = "WaitingForResources"
    SKIPPED = "Skipped"
    RUNNING = "Running"
    COMPLETED = "Completed"
    CACHED = "Cached"
    FAILED = "Failed"
    OUT_OF_MEMORY = "OutOfMemory"
    TIMED_OUT = "TimedOut"
    CANCELLED = "Cancelled"
    LOST = "Lost"
    OUTPUT_MISSING = "OutputMissing"

    @property
    def status(self) -> OperatorStatus:
        """The API's status. An operator that was never reached stays PENDING."""
        return OPERATOR_STATUS.get(self, OperatorStatus.FAULTED)


OPERATOR_STATUS = {
    OperatorPhase.PENDING: OperatorStatus.PENDING,
    OperatorPhase.WAITING: OperatorStatus.PENDING,
    OperatorPhase.SKIPPED: OperatorStatus.PENDING,
    OperatorPhase.RUNNING: OperatorStatus.RUNNING,
    OperatorPhase.COMPLETED: OperatorStatus.COMPLETED,
    OperatorPhase.CACHED: OperatorStatus.COMPLETED,
}


class OperatorEvent(StrEnum):
    """What can happen to an operator. The ends' values are `OperatorError.outcome` of the error tree."""

    WAIT = "wait"  # its resources are taken
    BEGIN = "begin"  # an attempt was launched; after a failed one, the next
    COMPLETE = "completed"
    REUSE = "cached"  # sealed outputs were found: an earlier job's, or of an earlier run of this one
    SKIP = "skipped"  # something upstream failed, or the job ended before it
    FAIL = "failed"
    RUN_OUT_OF_MEMORY = "out-of-memory"
    TIME_OUT = "timed-out"
    CANCEL = "cancelled"
    LOSE = "lost"
    MISS_OUTPUT = "output-missing"
    RESET = "reset"  # its job went back to the queue, or what it had sealed cannot be used in the next run


FAILURES = {
    OperatorEvent.FAIL: OperatorPhase.FAILED,
    OperatorEvent.RUN_OUT_OF_MEMORY: OperatorPhase.OUT_OF_MEMORY,
    OperatorEvent.TIME_OUT: OperatorPhase.TIMED_OUT,
    OperatorEvent.CANCEL: OperatorPhase.CANCELLED,
    OperatorEvent.LOSE: OperatorPhase.LOST,
    OperatorEvent.MISS_OUTPUT: OperatorPhase.OUTPUT_MISSING,
}

OPERATOR_TRANSITIONS: dict[tuple[OperatorPhase, OperatorEvent], OperatorPhase] = {
    (OperatorPhase.PENDING, OperatorEvent.WAIT): OperatorPhase.WAITING,
    **{
        (phase, event): target
        for phase in (OperatorPhase.PENDING, OperatorPhase.WAITING)
        for event, target in (
            (OperatorEvent.BEGIN, OperatorPhase.RUNNING),
            (OperatorEvent.REUSE, OperatorPhase.CACHED),
            (OperatorEvent.SKIP, OperatorPhase.SKIPPED),
            # Failed before its launch: the image cannot be had, the resources never fit, a cancel while waiting.
            *FAILURES.items(),
        )
    },
    (OperatorPhase.RUNNING, OperatorEvent.COMPLETE): OperatorPhase.COMPLETED,
    **{(OperatorPhase.RUNNING, event): phase for event, phase in FAILURES.items()},
    # In a job's next run.
    (OperatorPhase.COMPLETED, OperatorEvent.REUSE): OperatorPhase.COMPLETED,
    (OperatorPhase.CACHED, OperatorEvent.REUSE): OperatorPhase.CACHED,
    **{
        (phase, OperatorEvent.RESET): OperatorPhase.PENDING
        for phase in OperatorPhase
        if phase is not OperatorPhase.PENDING
    },
    # Another attempt, while the job goes on.
    **{(phase, OperatorEvent.WAIT): OperatorPhase.WAITING for phase in FAILURES.values()},
    **{(phase, OperatorEvent.BEGIN): OperatorPhase.RUNNING for phase in FAILURES.values()},
}


def advance_operator(phase: OperatorPhase, event: OperatorEvent, *, operator: str = "") -> OperatorPhase:
    """The operator's phase after `event`. Raises InvalidTransition where there is no such step."""
    try:
        return OPERATOR_TRANSITIONS[phase, event]
    except KeyError:
        raise InvalidTransition(
            f"operator {operator!r} is {phase}: it cannot take {event!r}", operator=operator, phase=phase, event=event
        ) from None


# How operators that a job leaves unfinished end with it.
ENDS_OF_RUNNING = {
    JobEvent.FAULT: OperatorEvent.LOSE,
    JobEvent.CANCEL: OperatorEvent.CANCEL,
    JobEvent.EXPIRE: OperatorEvent.TIME_OUT,
    JobEvent.EVICT: OperatorEvent.LOSE,
}
