"""The DICOM conformance statement, in the order of PS3.2 Annex A, made of what the code negotiates and answers.

python -m clara_flow.services.dicom.conformance > docs/reference/dicom-conformance.md
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from clara_flow.services.dicom import conformance_facts as facts
from clara_flow.services.dicom import conformance_text as text
from clara_flow.services.dicom import deidentify, implementation, inference_dimse, inference_move, synthetic
from clara_flow.services.dicom.conformance_facts import Row
from clara_flow.services.dicom.conformance_web import web
from clara_flow.services.dicom.export import commitment, dimse, proposals, transcode
from clara_flow.services.dicom.export.sender import REST_S
from clara_flow.services.dicom.grouping import source_query
from clara_flow.services.dicom.wire import association, contexts, lobby, pace, references, tls
from clara_flow.services.dicom.wire.negotiation import APPLICATION_CONTEXT

MR = "1.2.840.10008.5.1.4.1.1.4"  # stands for the storage classes, which are negotiated alike


def statement() -> str:
    """The page's text."""
    storage = facts.storage_classes()
    parts = [
        text.INTRODUCTION,
        _table(("Network service", "SCU", "SCP"), _overview(len(storage))),
        "Media interchange: none.\n",
        text.MODEL,
        *_storage_scp(storage),
        *_export_scu(),
        text.QUERY.format(
            find=inference_dimse.FIND,
            get=inference_dimse.GET,
            move=inference_move.MOVE,
            move_s=inference_move.SILENCE_S,
            title=facts.default("dicom_scu_ae_title"),
            find_s=source_query.TIMEOUT_S,
            get_s=inference_dimse.ANSWER_S,
        ),
        *web(),
        text.REST,
        _table(("Setting", "Default", "Meaning"), facts.settings(["dicom_", "gateway_port", "results_"])),
        text.CHARACTER_SETS.format(names=", ".join(facts.character_sets())),
        text.SECURITY.format(
            ciphers="\n".join(f"- `{cipher}`" for cipher in tls.CIPHERS.split(":")),
            profiles="\n".join(f"- `{one.name}`: {_codes(one)}" for one in deidentify.PROFILES.values()),
        ).rstrip()
        + "\n",
    ]
    return "\n".join(parts)


def _overview(storage_classes: int) -> list[Row]:
    return [
        ("Verification", "yes", "yes"),
        (f"Storage: {storage_classes} SOP classes of the standard, private ones (4.2.1.1)", "yes", "yes"),
        ("Storage Commitment Push Model", "option", "yes"),
        ("Modality Performed Procedure Step", "no", "yes"),
        ("Study Root Query/Retrieve: FIND, GET, MOVE", "option", "no"),
        ("Modality Worklist", "no", "no"),
        ("DICOMweb: STOW-RS", "yes", "yes"),
        ("DICOMweb: QIDO-RS, WADO-RS", "option", "yes"),
    ]


def _storage_scp(storage: Iterable[Row]) -> list[str]:
    return [
        "### 4.2 AE specifications\n\n#### 4.2.1 STORAGE-SCP\n",
        "##### 4.2.1.1 SOP classes\n",
        _table(
            ("SOP class", "UID", "Role", "Transfer syntaxes"),
            [
                ("Verification", contexts.VERIFICATION, "SCP", "those of `dicom_verification_transfer_syntaxes`"),
                (
                    "Storage Commitment Push Model",
                    contexts.STORAGE_COMMITMENT,
                    "SCP, SCU",
                    "the uncompressed ones below",
                ),
                ("Modality Performed Procedure Step", contexts.PROCEDURE_STEP, "SCP", "the uncompressed ones below"),
                ("storage classes below", "", "SCP", "all"),
            ],
        ),
        "Storage classes. C-GET: also taken as answers to our C-GET (4.2.3).\n",
        _table(("SOP class", "UID", ""), storage),
        text.POLICIES.format(
            context=APPLICATION_CONTEXT,
            maximum=facts.default("dicom_maximum_associations"),
            pdu=facts.default("dicom_maximum_pdu_bytes"),
            uid=implementation.CLASS_UID,
            name=implementation.VERSION_NAME,
            request=facts.default("dicom_request_timeout_s"),
            idle=facts.default("dicom_idle_timeout_s"),
            slowest=pace.SLOWEST_BYTES_S,
            places=lobby.WAITING_PLACES,
        ),
        text.ACCEPTANCE,
        _table(
            ("Transfer syntax", "UID", "Verification", "Commitment, MPPS", "Storage"),
            _syntaxes(),
        ),
        "Associations are rejected in this order of checks:\n",
        _table(("Result", "Source", "Reason", "When"), facts.rejections()),
        "##### 4.2.1.4 Storage: what is answered to C-STORE\n",
        _table(("Status", "Meaning", "When"), facts.statuses(facts.STORED_WHEN)),
        text.STORAGE,
        "##### 4.2.1.5 Storage commitment\n",
        text.COMMITMENT.format(references=f"{references.MAXIMUM_REFERENCES:,}"),
        _table(("Status of N-ACTION", "Meaning", "When"), facts.statuses(facts.ASKED_WHEN)),
        _table(("Failure Reason", "Meaning", "When"), facts.statuses(facts.COMMITMENT_FAILS_WHEN)),
        text.REMEMBERED.format(remembered=association.REMEMBERED_INSTANCES),
        text.REPORTS,
        _table(("Status of N-EVENT-REPORT", "Meaning", "When"), facts.statuses(facts.REPORTED_WHEN)),
        "##### 4.2.1.6 Modality Performed Procedure Step\n",
        text.PROCEDURE_STEP,
        _table(("Status of N-CREATE, N-SET", "Meaning", "When"), facts.statuses(facts.TOLD_WHEN)),
        text.OTHER_OPERATIONS,
    ]


def _export_scu() -> list[str]:
    retries = facts.default("dicom_export_retries")
    return [
        text.EXPORT.format(
            plain=", ".join(map(transcode.name_of, transcode.PLAIN)),
            verification=contexts.VERIFICATION,
            commitment=contexts.STORAGE_COMMITMENT,
            patient=synthetic.synthetic_instance(transcode.PLAIN[0]).PatientID,
            rest=REST_S,
            maximum=facts.default("dicom_scu_maximum_associations"),
            title=facts.default("dicom_scu_ae_title"),
            contexts=dimse.MAXIMUM_CONTEXTS,
            pdu=proposals.MAXIMUM_PDU,
            timeout=facts.default("dicom_export_timeout_s"),
            retries=retries,
        ),
        _table(("Status", "Meaning", "The file is"), facts.export_statuses()),
        text.EXPORT_COMMITMENT.format(wait=commitment.WAIT_S, retries=retries),
    ]


def _syntaxes() -> list[Row]:
    taken = [
        {uid for _, uid in facts.transfer_syntaxes(abstract)}
        for abstract in (contexts.VERIFICATION, contexts.STORAGE_COMMITMENT, MR)
    ]
    return [(name, uid, *("yes" if uid in one else "" for one in taken)) for name, uid in facts.transfer_syntaxes(MR)]


def _codes(profile: deidentify.Profile) -> str:
    return "; ".join(f"{meaning} ({value}, DCM)" for value, meaning in profile.codes)


def _table(heads: Row, rows: Iterable[Row]) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    sys.stdout.write(statement())
