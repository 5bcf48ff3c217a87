"""What the conformance statement says of us, asked of the code that does it: so it cannot say anything else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby

from pydicom._uid_dict import UID_dictionary
from pydicom.charset import python_encoding
from pydicom.uid import UID
from pynetdicom import StoragePresentationContexts

from clara_flow.services.dicom.export.refusals import REASONS, SOURCES
from clara_flow.services.dicom.export.retry_policy import verdict_of
from clara_flow.services.dicom.inference_dimse import MOST_CLASSES
from clara_flow.services.dicom.wire import admission, contexts
from clara_flow.services.dicom.wire.command_set import Status
from clara_flow.services.dicom.wire.negotiation import ProposedContext
from clara_flow.settings import Settings

Row = tuple[str, ...]  # cells of a table

NAMELESS = "(retired, without a name)"

# Why an association is rejected, by the name of the rejection, in the order of the checks.
REJECTED_WHEN = {
    "busy": "`dicom_maximum_associations` are open already, over all AE titles",
    "protocol_version": "the peer does not speak version 1 of the upper layer protocol",
    "calling_ae_title": "no source has this calling AE title and host; asked only when `dicom_reject_unknown_sources`",
    "user_identity": "the source must say who it is, and the user identity is absent or wrong",
    "source_busy": "the source has as many associations as it may (`--max-associations`)",
    "called_ae_title": "no AE title of ours is called so, or it was deleted; case counts",
    "application_context": "the application context is not the DICOM one",
    "verification_disabled": "Verification is proposed, and `dicom_verification` is off",
    "space": "a storage class is proposed, and the disk has too little room; it is worth trying again",
}
# What is answered to C-STORE, by the name of the status.
STORED_WHEN = {
    "SUCCESS": "the instance is on the disk (see 4.2.1.2), or its SOP class is one that the AE title ignores",
    "PROCESSING_FAILURE": "the instance could not be written for another reason than a full disk, or the called AE "
    "title was removed meanwhile",
    "INVALID_INSTANCE": "the Affected SOP Instance UID is no UID",
    "CLASS_NOT_SUPPORTED": "the Affected SOP Class UID is not that of the presentation context, or no storage class",
    "OUT_OF_RESOURCES": "the disk is full, or nearly so; it is worth trying again",
    "DOES_NOT_MATCH": "SOP Class, SOP Instance, Study Instance or Series Instance UID is missing, or differs from that "
    "of the command",
    "CANNOT_UNDERSTAND": "the data set cannot be read up to the attributes that are needed, or there is none",
}
# What is answered to N-ACTION.
ASKED_WHEN = {
    "SUCCESS": "the request is understood and in the journal; the report follows",
    "NO_SUCH_INSTANCE": "the Requested SOP Instance UID is not the well-known one",
    "INVALID_ARGUMENT": "the transaction UID or a reference is missing or no UID, or the data set cannot be read",
    "CLASS_NOT_SUPPORTED": "the SOP class is not Storage Commitment Push Model",
    "NO_SUCH_ACTION": "the Action Type ID is not 1",
    "PROCESSING_FAILURE": "the request could not be written down",
    "RESOURCE_LIMITATION": "the request is longer than 16 MiB, or the disk is full",
}
# What is answered to N-EVENT-REPORT.
REPORTED_WHEN = {
    "SUCCESS": "the report is in the journal",
    "NO_SUCH_INSTANCE": "the Affected SOP Instance UID is not the well-known one",
    "NO_SUCH_EVENT": "the Event Type ID is neither 1 nor 2",
    "INVALID_ARGUMENT": "the transaction UID or a reference is missing or no UID, there are more than 100,000 "
    "references, or the data set cannot be read",
    "CLASS_NOT_SUPPORTED": "the SOP class is not Storage Commitment Push Model",
    "PROCESSING_FAILURE": "the report could not be written down",
    "RESOURCE_LIMITATION": "the report is longer than 16 MiB, or the disk is full",
}
# What is answered to N-CREATE and N-SET of Modality Performed Procedure Step.
TOLD_WHEN = {
    "SUCCESS": "the step is on the disk (see 4.2.1.2)",
    "INVALID_ATTRIBUTE_VALUE": "a status that there is not, or not IN PROGRESS in N-CREATE; a UID that is none",
    "PROCESSING_FAILURE": "the data set cannot be read, or the step could not be written for another reason than a "
    "full disk; with Error ID 0xA710: the step is COMPLETED or DISCONTINUED already",
    "DUPLICATE_INSTANCE": "N-CREATE of a step that there is",
    "NO_SUCH_INSTANCE": "N-SET of a step that there is not",
    "INVALID_INSTANCE": "the SOP Instance UID is no UID, or missing in N-SET",
    "MISSING_ATTRIBUTE": "an attribute that is needed (above) is missing",
    "MISSING_ATTRIBUTE_VALUE": "an attribute that is needed is empty",
    "CLASS_NOT_SUPPORTED": "the SOP class is not Modality Performed Procedure Step, or not that of the context",
    "RESOURCE_LIMITATION": "the disk is full, or nearly so; or the data set is longer than 2 MiB",
}
# Failure Reasons (0008,1197) in the report.
COMMITMENT_FAILS_WHEN = {
    "PROCESSING_FAILURE": "the records cannot be asked now",
    "NO_SUCH_INSTANCE": "no such instance was received, or its group was discarded",
    "CLASS_INSTANCE_CONFLICT": "it was received with another SOP class",
}


def storage_classes() -> list[Row]:
    """Name, UID and remarks of every SOP class of the standard that the listener takes, by name."""
    by_get = {str(context.abstract_syntax) for context in StoragePresentationContexts[:MOST_CLASSES]}
    rows: list[Row] = [
        (entry[0] or NAMELESS, uid, ", ".join(filter(None, [entry[3].lower(), "C-GET" if uid in by_get else ""])))
        for uid, entry in UID_dictionary.items()
        if contexts.is_storage(uid)
    ]
    return sorted(rows)


def transfer_syntaxes(abstract_syntax: str) -> list[Row]:
    """Name and UID of every transfer syntax of the standard that the listener takes for it, where it stands alone."""
    verification = Settings.model_fields["dicom_verification_transfer_syntaxes"].default
    proposed = [
        ProposedContext(1, abstract_syntax, (uid,))
        for uid, entry in UID_dictionary.items()
        if entry[1] == "Transfer Syntax"
    ]
    answers, _ = contexts.answer_contexts(proposed, (), verification_syntaxes=verification)
    accepted = [answer.transfer_syntax for answer in answers if answer.result == contexts.ACCEPTED]
    return [(UID(uid).name, uid) for uid in accepted]


def rejections() -> list[Row]:
    """Result, source, reason and condition of every A-ASSOCIATE-RJ, in the order of the checks."""
    lasting = {1: "1 rejected-permanent", 2: "2 rejected-transient"}
    return [
        (
            lasting[one.result],
            f"{one.source} {SOURCES[one.source]}",
            f"{one.reason} {REASONS[one.source, one.reason]}",
            REJECTED_WHEN[one.name],
        )
        for one in admission.REJECTIONS
    ]


def statuses(conditions: Mapping[str, str]) -> list[Row]:
    """Code, meaning and condition, by code."""
    rows: list[Row] = [(f"0x{getattr(Status, name):04X}", _words(name), when) for name, when in conditions.items()]
    return sorted(rows)


def export_statuses() -> list[Row]:
    """What the exporter makes of C-STORE statuses: codes, meaning, state of the file. Runs of alike are one row."""

    def meaning(status: int) -> tuple[str, str]:
        verdict = verdict_of(status)
        return verdict.reason.partition(" ")[2] or "success", str(verdict.state)

    rows: list[Row] = []
    others: Row = ()
    for (reason, state), run in groupby(range(0x10000), key=meaning):
        codes = list(run)
        if reason == "unknown status":
            others = ("any other", reason, state)
            continue
        shown = f"0x{codes[0]:04X}" + (f" to 0x{codes[-1]:04X}" if len(codes) > 1 else "")
        rows.append((shown, reason, state))
    return [*rows, others]


def settings(prefixes: Iterable[str]) -> Iterator[Row]:
    """Name, default and meaning of the settings whose names begin so."""
    schema = Settings.model_json_schema()["properties"]
    for name, field in schema.items():
        if name.startswith(tuple(prefixes)):
            shown = field.get("default")
            yield f"`{name}`", "unset" if shown is None else f"`{json.dumps(shown)}`", field["description"]


def default(setting: str) -> object:
    """What a setting is where nobody changed it."""
    return Settings.model_fields[setting].default


def character_sets() -> list[str]:
    """Defined terms of Specific Character Set (0008,0005) that attributes are read in (PS3.3 C.12.1.1.2)."""
    return [name for name in python_encoding if name.startswith(("ISO_IR", "ISO 2022 IR", "GB"))]


def _words(name: str) -> str:
    return name.replace("_", " ").lower().replace("sop", "SOP")
