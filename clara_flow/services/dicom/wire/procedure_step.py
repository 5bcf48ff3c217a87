"""Modality Performed Procedure Step (PS3.4 Annex F.7): a modality says what it does for a study, and what it has made.

Of all that it says, only which studies, which instances, and whether it goes on are read: nothing of the patient.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pydicom import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import Tag

from clara_flow.errors import Conflict, InvalidTransition, NotFound, StorageError
from clara_flow.records.dicom_lines import PerformedSeries, Step
from clara_flow.records.dicom_models import StepStatus
from clara_flow.services.dicom.journal import JournalDoubtful
from clara_flow.services.dicom.procedure_steps import ProcedureSteps
from clara_flow.services.dicom.wire.command_set import N_CREATE_RQ, Command, Status
from clara_flow.services.dicom.wire.contexts import EXPLICIT_BIG, IMPLICIT_LITTLE, PROCEDURE_STEP
from clara_flow.services.dicom.wire.gathering import Gathered
from clara_flow.services.dicom.wire.negotiation import ContextAnswer, is_uid
from clara_flow.services.dicom.wire.store import Operation, Outcome, Refused

log = logging.getLogger(__name__)

MAXIMUM_BYTES = 2 * 1024 * 1024  # some 20,000 references, which pydicom needs 60 MB for
STATUS = "PerformedProcedureStepStatus"
SCHEDULED = "ScheduledStepAttributesSequence"
SERIES = "PerformedSeriesSequence"
READ: tuple[int, ...] = tuple(map(Tag, (STATUS, SCHEDULED, SERIES)))
REFERENCES = ("ReferencedImageSequence", "ReferencedNonImageCompositeSOPInstanceSequence")
IS_OVER = Outcome(
    Status.PROCESSING_FAILURE, "Performed Procedure Step Object may no longer be updated", 0xA710
)  # PS3.4 Table F.7.2-2


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDesk:
    """What all words of one association share.

    note            puts into the journal that a step's file, relative to the spool, has changed.
    on_told         is called when a modality's word was taken.
    on_broken       is told that the journal takes nothing any more.
    """

    steps: ProcedureSteps
    is_space_short: Callable[[], bool]
    note: Callable[[str], None]
    on_told: Callable[[], None]
    on_broken: Callable[[], None]


class AttributeWrong(Exception):
    """An attribute is not as it has to be; `outcome` is what is answered."""

    def __init__(self, status: int, comment: str) -> None:
        super().__init__(comment)
        self.outcome = Outcome(status, comment)


@dataclass(frozen=True, slots=True)
class Said:
    """What a word says; None: nothing of that. studies: only that which begins a step tells them."""

    status: StepStatus | None
    studies: tuple[str, ...]
    series: tuple[PerformedSeries, ...] | None


def begin_word(command: Command, context: ContextAnswer, desk: StepDesk) -> Operation:
    """What takes the data set of this N-CREATE or N-SET."""
    if context.abstract_syntax != PROCEDURE_STEP or command.sop_class != PROCEDURE_STEP:
        return Refused(Outcome(Status.CLASS_NOT_SUPPORTED))
    if not is_uid(command.sop_instance):
        return Refused(Outcome(Status.INVALID_INSTANCE, "the SOP instance UID is no UID"))
    if not command.has_data_set:
        return Refused(Outcome(Status.MISSING_ATTRIBUTE, "there is no data set"))
    if desk.is_space_short():
        return Refused(Outcome(Status.RESOURCE_LIMITATION, "the disk is nearly full"))
    return _Word(command, context, desk)


class _Word:
    """Gathers what a modality says, and takes it when it is whole."""

    def __init__(self, command: Command, context: ContextAnswer, desk: StepDesk) -> None:
        self._uid = command.sop_instance
        self._creates = command.field == N_CREATE_RQ
        self._desk = desk
        self._transfer_syntax = context.transfer_syntax
        self._gathered = Gathered(MAXIMUM_BYTES)

    def write(self, data: memoryview) -> None:
        """Keep it, up to a limit."""
        self._gathered.write(data)

    def finish(self) -> Outcome:
        """Success when the step is on the disk, and the journal tells of it."""
        if self._gathered.is_too_long:
            return Outcome(Status.RESOURCE_LIMITATION, "too much at once")
        try:
            outcome = self._take(read_word(self._gathered.data, self._transfer_syntax, creates=self._creates))
        except AttributeWrong as error:
            return error.outcome
        except ValueError:
            return Outcome(Status.PROCESSING_FAILURE, "the data set or the step cannot be read")
        except StorageError as error:
            if isinstance(error, JournalDoubtful):
                self._desk.on_broken()
            log.error("a procedure step could not be written: %s", error)
            if "free_bytes" in error.facts:
                return Outcome(Status.RESOURCE_LIMITATION, "the disk is full")
            return Outcome(Status.PROCESSING_FAILURE, "the step could not be written")
        if outcome.status == Status.SUCCESS:
            self._desk.on_told()
        return outcome

    def abandon(self) -> None:
        """Forget it."""
        self._gathered.clear()

    def _take(self, said: Said) -> Outcome:
        steps, outcome = self._desk.steps, Outcome(Status.SUCCESS)
        try:
            if self._creates:
                steps.create(
                    Step(
                        uid=self._uid,
                        version=1,
                        status=StepStatus.IN_PROGRESS,
                        studies=said.studies,
                        series=said.series or (),
                    )
                )
            else:
                steps.change(self._uid, said.status, said.series)
        except NotFound:
            return Outcome(Status.NO_SUCH_INSTANCE, "there is no such step")
        except Conflict:
            outcome = Outcome(Status.DUPLICATE_INSTANCE, "there is such a step already")
        except InvalidTransition:
            outcome = IS_OVER
        # Noted also for what was written before: whoever wrote it may have ended before it could do so.
        self._desk.note(steps.path_of(self._uid))
        return outcome


def read_word(data: bytes, transfer_syntax: str, *, creates: bool) -> Said:
    """What a modality says (PS3.4 Table F.7.2-1).

    creates     whether it begins a step: then the attributes that we need must be there.

    Raises AttributeWrong, and ValueError for what is no data set.
    """
    try:
        dataset = read_dataset(
            io.BytesIO(data),
            is_implicit_VR=transfer_syntax == IMPLICIT_LITTLE,
            is_little_endian=transfer_syntax != EXPLICIT_BIG,
            specific_tags=list(READ),
        )
        status = _status(dataset) if creates or STATUS in dataset else None
        if creates and status is not StepStatus.IN_PROGRESS:
            raise AttributeWrong(Status.INVALID_ATTRIBUTE_VALUE, "a step begins IN PROGRESS")
        scheduled = _required(dataset, SCHEDULED) if creates else ()
        studies = dict.fromkeys(_uid(item, "StudyInstanceUID") for item in scheduled)
        return Said(status, tuple(studies), _series(dataset[SERIES].value or ()) if SERIES in dataset else None)
    except AttributeWrong:
        raise
    except Exception as error:  # pydicom raises whatever a broken data set makes of it, and it may say values
        raise ValueError("the data set cannot be read") from error


def _status(dataset: Dataset) -> StepStatus:
    try:
        return StepStatus(str(_required(dataset, STATUS)).strip())
    except ValueError:
        raise AttributeWrong(Status.INVALID_ATTRIBUTE_VALUE, "no Performed Procedure Step Status") from None


def _series(items: Iterable[Dataset]) -> tuple[PerformedSeries, ...]:
    """What the step has made, by series and SOP class."""
    made: dict[tuple[str, str], dict[str, None]] = {}
    for item in items:
        series = _uid(item, "SeriesInstanceUID")
        for reference in (one for keyword in REFERENCES if keyword in item for one in item[keyword].value or ()):
            instances = made.setdefault((series, _uid(reference, "ReferencedSOPClassUID")), {})
            instances[_uid(reference, "ReferencedSOPInstanceUID")] = None
    return tuple(PerformedSeries(series, sop_class, tuple(found)) for (series, sop_class), found in made.items())


def _uid(dataset: Dataset, keyword: str) -> str:
    uid = str(_required(dataset, keyword))
    if not is_uid(uid):
        raise AttributeWrong(Status.INVALID_ATTRIBUTE_VALUE, f"{keyword} is no UID")
    return uid


def _required(dataset: Dataset, keyword: str) -> Any:
    if keyword not in dataset:
        raise AttributeWrong(Status.MISSING_ATTRIBUTE, f"{keyword} is missing")
    value = dataset[keyword].value
    if value is None or not len(value):
        raise AttributeWrong(Status.MISSING_ATTRIBUTE_VALUE, f"{keyword} is empty")
    return value
