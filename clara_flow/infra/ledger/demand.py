"""What an ask demands, prepared once for all asks that demand the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Self
from uuid import UUID

from clara_flow.infra.ledger.model import Amounts, Ask, Priority


@dataclass(frozen=True, slots=True)
class Demand:
    """Everything on which the answer to an ask depends, but its age: asks with equal demands are served in turn.

    job_id  only of operators of preemptible jobs: they are not served while their job yields.
    parts   granted together on one node, one lease each: the ask's own amounts, then its first operator's.
    needs   what the node must be able to hold one day.
    """

    tenant: str
    priority: Priority
    admission: bool
    job_id: UUID | None
    parts: tuple[Amounts, ...]
    needs: tuple[Amounts, ...]
    node: str | None
    limit_s: float
    preemptible: bool
    early: bool
    completes: bool
    total: Amounts = field(compare=False)
    wants_gpu: bool = field(compare=False)

    @classmethod
    def of(cls, ask: Ask) -> Self:
        """The demand of one ask."""
        parts = (ask.amounts, ask.first[1]) if ask.first else (ask.amounts,)
        return cls(
            tenant=ask.tenant,
            priority=ask.priority,
            admission=not ask.operator,
            job_id=ask.job_id if ask.operator and ask.preemptible and not ask.completes else None,
            parts=parts,
            needs=ask.needs,
            node=ask.node,
            limit_s=ask.limit_s,
            preemptible=ask.preemptible,
            early=ask.early,
            completes=ask.completes,
            total=reduce(add, parts),
            wants_gpu=any(amounts.gpu or amounts.gpu_memory_mib for amounts in (*parts, *ask.needs)),
        )
