"""Which presentation contexts the listener accepts, and with which transfer syntax."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from pydicom._uid_dict import UID_dictionary

from clara_flow.services.dicom.wire.negotiation import ContextAnswer, ProposedContext, Role, is_uid

VERIFICATION = "1.2.840.10008.1.1"
STORAGE_COMMITMENT = "1.2.840.10008.1.20.1"  # push model
PROCEDURE_STEP = "1.2.840.10008.3.1.2.3.3"  # Modality Performed Procedure Step
DICOM_ROOT = "1.2.840.10008."
STORAGE_ROOT = "1.2.840.10008.5.1.4.1.1."
NOT_STORED_BY_C_STORE = {"1.2.840.10008.1.3.10", STORAGE_COMMITMENT, "1.2.840.10008.1.20.2"}  # DICOMDIR, commitment

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"
PLAIN_SYNTAXES = (EXPLICIT_LITTLE, IMPLICIT_LITTLE, EXPLICIT_BIG)

ACCEPTED, USER_REJECTION, ABSTRACT_SYNTAX_NOT_SUPPORTED, TRANSFER_SYNTAXES_NOT_SUPPORTED = 0, 1, 3, 4


def is_storage(sop_class: str) -> bool:
    """Whether instances of this SOP class are taken: the standard's storage classes, also those that are retired or
    newer than this program, and every private class.
    """
    if not is_uid(sop_class) or sop_class in NOT_STORED_BY_C_STORE:
        return False
    if not sop_class.startswith(DICOM_ROOT):
        return True
    name, kind = UID_dictionary.get(sop_class, ("", ""))[:2]
    if name:
        return "Storage" in name and kind == "SOP Class"
    return sop_class.startswith(STORAGE_ROOT)


def answer_contexts(
    proposed: Iterable[ProposedContext],
    roles: Iterable[Role],
    *,
    verification_syntaxes: Collection[str],
    stores: bool = True,
) -> tuple[list[ContextAnswer], list[Role]]:
    """An answer to each context in the order of proposal, and to the roles of the accepted ones.

    stores      whether instances are taken at all.

    We are SCP alone: a peer that wants to be nothing but SCP of a class is refused it (PS3.7 Annex D.3.3.4). Of
    storage commitment we are either: a peer that reports what it keeps of ours is the SCP.
    """
    wanted = {role.sop_class: role for role in roles}
    answers = [
        _answer(context, wanted.get(context.abstract_syntax), verification_syntaxes, stores=stores)
        for context in proposed
    ]
    accepted = {answer.abstract_syntax for answer in answers if answer.result == ACCEPTED}
    return answers, [_role(role) for role in wanted.values() if role.sop_class in accepted]


def _role(wanted: Role) -> Role:
    if wanted.sop_class != STORAGE_COMMITMENT:
        return Role(wanted.sop_class, True, False)
    return Role(wanted.sop_class, wanted.scu or not wanted.scp, wanted.scp)


def _answer(
    context: ProposedContext, role: Role | None, verification_syntaxes: Collection[str], *, stores: bool
) -> ContextAnswer:
    abstract = context.abstract_syntax
    usable = [syntax for syntax in context.transfer_syntaxes if is_uid(syntax)]
    if abstract == VERIFICATION:
        usable = [syntax for syntax in usable if syntax in verification_syntaxes]
    elif abstract in {STORAGE_COMMITMENT, PROCEDURE_STEP}:
        usable = [syntax for syntax in usable if syntax in PLAIN_SYNTAXES]
    elif not stores or not is_storage(abstract):
        return _refused(context, ABSTRACT_SYNTAX_NOT_SUPPORTED)
    if not usable:
        return _refused(context, TRANSFER_SYNTAXES_NOT_SUPPORTED)
    if role is not None and role.scp and not role.scu and abstract != STORAGE_COMMITMENT:
        return _refused(context, USER_REJECTION)
    return ContextAnswer(context.context_id, abstract, ACCEPTED, usable[0])


def _refused(context: ProposedContext, result: int) -> ContextAnswer:
    return ContextAnswer(context.context_id, context.abstract_syntax, result, IMPLICIT_LITTLE)  # it is not looked at
