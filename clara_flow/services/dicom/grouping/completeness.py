"""Is a group complete? Pure: facts in, a verdict out.

A group that is known to have all its instances need not wait for silence. What may tell (`expect`):

attributes      Number of Study Related Instances (0020,1208); or Number of Study Related Series (0020,1206) with, for
                each series, Number of Series Related Instances (0020,1209) or Images in Acquisition (0020,1002); for
                groups of one series, the last two alone.
history         the last groups of the same source that the present one could become: at least three, none larger.
find            the number that the source itself gives when it is asked (C-FIND).
mpps            what its modality says that it has made (MPPS), instance by instance; that counts before the others.

Whatever they say, a group is complete when nothing came for its timeout; only a modality that says that more is to come
is given a longer one. While a sender of it holds its association
open, at least `HELD_OPEN_S` of silence count, Clara's least timeout: a sender that pauses has not finished.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from clara_flow.records.dicom_group_queries import GroupFacts, Shape
from clara_flow.records.dicom_lines import SERIES_TAG, STUDY_TAG
from clara_flow.records.dicom_models import StepStatus
from clara_flow.records.dicom_steps import StepFacts

HELD_OPEN_S = 5.0
LEAST_HISTORY = 3


@dataclass(frozen=True, slots=True)
class Expected:
    """How many instances a group should have, and who says so."""

    instances: int
    source: str


@dataclass(frozen=True, slots=True)
class Performed:
    """What a group's modality says of it: either `waits`, that something is to come, or `whole`, the number of
    instances that it has made and that are all in the group.
    """

    waits: str = ""
    whole: int = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """rule: why the group is complete, "" when it is not.

    waits       what for, for people. wait_s: after which silence it is worth to look again; None: only when something
                happened.
    """

    rule: str = ""
    waits: str = ""
    wait_s: float | None = None
    expected: Expected | None = None

    @property
    def is_complete(self) -> bool:
        """Whether it is."""
        return bool(self.rule)


def verdict(
    facts: GroupFacts,
    *,
    idle_s: float,
    timeout_s: float,
    expected: Expected | None = None,
    performed: Performed | None = None,
    mpps_timeout_s: float = 0.0,
) -> Verdict:
    """Whether a group is complete for which nothing came for `idle_s`.

    mpps_timeout_s      silence that is waited for while `performed` says that something is to come.
    """
    if facts.unreleased:
        if facts.open_associations:
            waits = "an association to be released"
        else:
            waits = f"{facts.unreleased} instances of an aborted association to be sent again"
        return Verdict(waits=f"waits for {waits}", expected=expected)
    silence_s = max(timeout_s, HELD_OPEN_S) if facts.open_associations else timeout_s
    if performed is not None and performed.waits:
        return _awaited(performed.waits, idle_s, max(silence_s, mpps_timeout_s), expected)
    if performed is not None and performed.whole:  # two steps may name the same instance
        expected = Expected(min(performed.whole, facts.instances), "its modality, by MPPS")
    if expected is not None and facts.instances >= expected.instances and not facts.open_associations:
        rule = f"all {expected.instances} expected instances came ({expected.source})"
        return Verdict(rule, expected=expected)
    if idle_s >= silence_s:
        of = f", {facts.instances} of {expected.instances} expected ({expected.source})" if expected else ""
        return Verdict(f"nothing came for {silence_s:g} s{of}", expected=expected)
    return Verdict(waits=f"waits for {silence_s:g} s of silence", wait_s=silence_s - idle_s, expected=expected)


def _awaited(waits: str, idle_s: float, silence_s: float, expected: Expected | None) -> Verdict:
    if idle_s >= silence_s:
        return Verdict(f"nothing came for {silence_s:g} s, though {waits} was to come (MPPS)", expected=expected)
    waits = f"waits for {waits} (MPPS), no longer than for {silence_s:g} s of silence"
    return Verdict(waits=waits, wait_s=silence_s - idle_s, expected=expected)


def from_steps(steps: Sequence[StepFacts]) -> Performed | None:
    """What a modality's steps for a group's study say; None where they leave it open.

    A step that has made only what is in earlier groups of the study says nothing of this one, nor does one that has
    made nothing. Of one that was discontinued nobody knows what is sent.
    """
    if any(one.status is StepStatus.IN_PROGRESS for one in steps):
        return Performed(waits="the end of a procedure step")
    completed = [one for one in steps if one.status is StepStatus.COMPLETED and (one.here or one.missing)]
    named, missing = sum(one.named for one in completed), sum(one.missing for one in completed)
    if missing:
        return Performed(waits=f"{missing} of {named} instances that its modality made")
    discontinued = any(
        one.status is StepStatus.DISCONTINUED and (one.here or one.missing or not one.named) for one in steps
    )
    if completed and not discontinued and all(one.here == one.named for one in completed):
        return Performed(whole=named)
    return None


def from_attributes(facts: GroupFacts, group_tag: str) -> Expected | None:
    """What the attributes of the received instances say; None where they leave it open."""
    if group_tag == STUDY_TAG and facts.study_instances is not None:
        return Expected(facts.study_instances, "attributes of the study")
    whole = group_tag == SERIES_TAG or (group_tag == STUDY_TAG and facts.study_series == len(facts.series))
    counts = [one.related if one.related is not None else one.acquisition for one in facts.series]
    known = [count for count in counts if count is not None]
    if not whole or not counts or len(known) < len(counts):
        return None
    return Expected(sum(known), "attributes of each series")


def from_history(facts: GroupFacts, earlier: Sequence[Shape]) -> Expected | None:
    """What earlier groups of the same source let expect: the largest that the present one could become.

    Conservative: at least LEAST_HISTORY of them must have all series (modality and description) of the present one,
    with at least as many instances each; series without a description tell nothing.
    """
    now: Counter[tuple[str, str]] = Counter()
    for one in facts.series:
        if not one.description:
            return None
        now[one.modality, one.description] += one.instances
    alike = [shape for shape in earlier if all(shape.get(kind, 0) >= count for kind, count in now.items())]
    if not now or len(alike) < LEAST_HISTORY:
        return None
    return Expected(max(sum(shape.values()) for shape in alike), f"{len(alike)} earlier ones like it")
