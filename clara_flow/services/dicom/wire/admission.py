"""Whether a peer gets its association: the checks of Clara's adapter in their order, each with its own refusal."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass

from clara_flow.services.dicom.listener_config import AeTitleRule, ListenerConfig, SourceRule
from clara_flow.services.dicom.wire.contexts import ACCEPTED, VERIFICATION, answer_contexts, is_storage
from clara_flow.services.dicom.wire.negotiation import APPLICATION_CONTEXT, AssociateRequest, ContextAnswer, Role
from clara_flow.services.dicom.wire.pdu import Rejection
from clara_flow.services.dicom.wire.slots import Slot
from clara_flow.services.dicom.wire.sources import Address, HostNames, find_source, is_committer, is_who_it_says

# Result, source, reason: PS3.8 Table 9-21. 1 is permanent: the peer need not try again.
BUSY = Rejection(2, 3, 2, "busy")
WRONG_PROTOCOL = Rejection(1, 2, 2, "protocol_version")
UNKNOWN_SOURCE = Rejection(1, 1, 3, "calling_ae_title")
WRONG_IDENTITY = Rejection(1, 1, 1, "user_identity")
SOURCE_BUSY = Rejection(2, 3, 2, "source_busy")
UNKNOWN_CALLED = Rejection(1, 1, 7, "called_ae_title")
WRONG_APPLICATION_CONTEXT = Rejection(1, 1, 2, "application_context")
NO_VERIFICATION = Rejection(1, 1, 2, "verification_disabled")
NO_SPACE = Rejection(2, 1, 1, "space")
REJECTIONS = (
    BUSY,
    WRONG_PROTOCOL,
    UNKNOWN_SOURCE,
    WRONG_IDENTITY,
    SOURCE_BUSY,
    UNKNOWN_CALLED,
    WRONG_APPLICATION_CONTEXT,
    NO_VERIFICATION,
    NO_SPACE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What an administrator has set, and what is asked on the way.

    take_source_slot    a slot of that source, which has a limit; None when it has as many as it may.
    is_space_short      whether there is too little room for instances.
    """

    reject_unknown_sources: bool
    verification: bool
    verification_syntaxes: Collection[str]
    names: HostNames
    take_source_slot: Callable[[SourceRule], Slot | None]
    is_space_short: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Admitted:
    """An association that may be."""

    rule: AeTitleRule
    answers: tuple[ContextAnswer, ...]
    roles: tuple[Role, ...]
    identity_response: bytes | None

    @property
    def contexts(self) -> dict[int, ContextAnswer]:
        """The accepted presentation contexts by their ID."""
        return {answer.context_id: answer for answer in self.answers if answer.result == ACCEPTED}


def admit(
    request: AssociateRequest, peer: Address, config: ListenerConfig, policy: Policy, holds: ExitStack
) -> Admitted | Rejection:
    """Decide. That the listener as a whole has a slot left was asked before.

    A destination that is asked for storage commitment may call us by the AE title by which we call it, to report; so
    may a source. Nothing is stored there.

    holds   gets what the association holds as long as it lives, also when it is rejected later on the way.
    """
    if not request.protocol_version & 1:
        return WRONG_PROTOCOL
    source = find_source(config.sources, request.calling, peer, policy.names)
    is_source = source is not None or not policy.reject_unknown_sources
    may_report = any(
        rule.called == request.called and (is_source or is_committer(rule, request.calling, peer, policy.names))
        for rule in config.committers
    )
    if not is_source and not may_report:
        return UNKNOWN_SOURCE
    if source is not None and not is_who_it_says(source, request.identity):
        return WRONG_IDENTITY
    if source is not None and source.maximum_associations is not None:
        slot = policy.take_source_slot(source)
        if slot is None:
            return SOURCE_BUSY
        holds.callback(slot.release)
    rule = config.aetitles.get(request.called) if is_source else None
    stores = rule is not None and not rule.draining
    if rule is None or rule.draining:
        if not may_report:
            return UNKNOWN_CALLED
        rule = AeTitleRule(name="", ae_title=request.called)
    if request.application_context != APPLICATION_CONTEXT:
        return WRONG_APPLICATION_CONTEXT
    proposed = {context.abstract_syntax for context in request.contexts}
    if VERIFICATION in proposed and not policy.verification:
        return NO_VERIFICATION
    if any(map(is_storage, proposed)) and policy.is_space_short():
        return NO_SPACE
    answers, roles = answer_contexts(
        request.contexts, request.roles, verification_syntaxes=policy.verification_syntaxes, stores=stores
    )
    checked = source is not None and bool(source.user_name)
    wants = request.identity is not None and request.identity.wants_response
    return Admitted(rule, tuple(answers), tuple(roles), b"" if checked and wants else None)
