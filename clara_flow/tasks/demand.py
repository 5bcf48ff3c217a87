"""What a job will ask of the pool, in the ledger's words: stored with the job, because the machinery knows no plan."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from operator import add
from typing import Any

from clara_flow.infra.ledger.model import Amounts
from clara_flow.plan import Plan, PlanOperator

GANG = "gang"


def operator_amounts(operator: PlanOperator) -> Amounts:
    """What one running operator holds."""
    requests = operator.requests
    return Amounts(
        cpu=requests.cpu, memory_mib=requests.memory_mib, gpu=requests.gpu, gpu_memory_mib=requests.gpu_memory_mib
    )


def job_amounts(plan: Plan) -> Amounts:
    """What the job itself holds from its admission to its end.

    A runner slot and the FastIO volume; with `scheduling: gang` also everything that all of its operators hold
    together, where an operator that shares a GPU gets one of its own beside others' whole ones.
    """
    own = Amounts(jobs=1, fastio_mib=plan.fastio_mib)
    if plan.scheduling != GANG:
        return own
    whole = reduce(add, (operator_amounts(operator) for operator in plan.operators), own)
    sharing = sum(1 for operator in plan.operators if operator.requests.gpu_memory_mib)
    if sharing > 1 or (sharing and whole.gpu):
        return whole + Amounts(gpu=sharing, gpu_memory_mib=-whole.gpu_memory_mib)
    return whole


def demand_of(
    plan: Plan,
    *,
    timeout_s: int,
    grace_s: float,
    expected_s: float | None = None,
    steps_s: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """The `demand` of a job's record: amounts of the job, of its first operator, the distinct needs of all, limits.

    expected_s, steps_s     how long the job, and its operators by name, took lately; for forecasts only.
    """
    gang = plan.scheduling == GANG
    first = plan.operators[0]  # in topological order, so it waits for nobody
    needs = {operator_amounts(operator): None for operator in plan.operators}
    return {
        "job": job_amounts(plan).as_json(),
        "first": None if gang else [first.name, operator_amounts(first).as_json()],
        "needs": [] if gang else [need.as_json() for need in needs],
        "limit_s": timeout_s + grace_s,
        "expected_s": expected_s,
        "steps_s": dict(steps_s or {}),
    }
