"""What this machine can run at once, and who holds it now.

One gate per process admits operators: a request is granted whole (cores, memory and GPUs together, so that two
operators can never hold half of what each other needs) and in the order of asking, where a later request may pass an
earlier one only when it does not touch the resource that one waits for.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from clara_flow.errors import ResourcesNeverFit
from clara_flow.infra.gpu.inventory import list_gpus
from clara_flow.infra.launchers.spec import ResourceRequest

CGROUP_MEMORY_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True, slots=True)
class Capacity:
    """Resources of a machine. cpu in cores, memory in MiB, GPUs by UUID."""

    cpu: int
    memory_mib: int
    gpus: tuple[str, ...] = ()

    @classmethod
    def of_this_machine(cls) -> Capacity:
        """Cores this process may use, memory under its cgroup's limit, GPUs that NVML shows."""
        memory = psutil.virtual_memory().total
        for limit_file in CGROUP_MEMORY_LIMITS:
            try:
                memory = min(memory, int(limit_file.read_text()))
            except (OSError, ValueError):  # no such cgroup version, or "max"
                continue
        return cls(
            cpu=len(os.sched_getaffinity(0)), memory_mib=memory // 2**20, gpus=tuple(gpu.uuid for gpu in list_gpus())
        )

    def missing_for(self, request: ResourceRequest) -> dict[str, int]:
        """What this machine lacks for the request even when nothing else runs; empty when it fits."""
        lacks = {
            "cpu": request.cpu - self.cpu,
            "memory_mib": request.memory_mib - self.memory_mib,
            "gpu": request.gpu - len(self.gpus),
        }
        return {resource: amount for resource, amount in lacks.items() if amount > 0}


@dataclass(frozen=True, slots=True)
class Grant:
    """What one holder got: the whole request, and which GPUs."""

    request: ResourceRequest
    gpus: tuple[str, ...] = ()


class CapacityGate:
    """Grants requests out of one Capacity. Not thread-safe: one gate belongs to one event loop."""

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity
        self._cpu = capacity.cpu
        self._memory_mib = capacity.memory_mib
        self._gpus = list(capacity.gpus)
        self._waiting: list[tuple[ResourceRequest, asyncio.Future[Grant]]] = []

    async def acquire(
        self, holder: str, request: ResourceRequest, *, on_wait: Callable[[str], None] = lambda reason: None
    ) -> Grant:
        """The request, granted whole; waits for it when it is not free now. Give it back with `release`.

        on_wait     called once, with what is waited for, when the request cannot be granted at once.
        Raises ResourcesNeverFit when waiting would not help. A cancelled wait holds nothing.
        """
        if missing := self.capacity.missing_for(request):
            raise ResourcesNeverFit(holder, missing=missing)
        future: asyncio.Future[Grant] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        self._admit()
        if not future.done():
            on_wait(f"waits for {', '.join(self._short_of(request)) or 'its turn'}")
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():  # granted in the instant of the cancellation
                self.release(future.result())
            self._admit()
            raise

    def release(self, grant: Grant) -> None:
        """Give a grant back; whoever waits for it gets it now."""
        self._cpu += grant.request.cpu
        self._memory_mib += grant.request.memory_mib
        self._gpus.extend(grant.gpus)
        self._admit()

    def _admit(self) -> None:
        """Grant, oldest first, what fits; a resource that an older request waits for is closed to younger ones."""
        closed: set[str] = set()
        still_waiting = []
        for request, future in self._waiting:
            if future.cancelled():  # its holder is on its way out
                continue
            short = self._short_of(request)
            if short or closed & _touched(request):
                closed |= set(short)
                still_waiting.append((request, future))
                continue
            self._cpu -= request.cpu
            self._memory_mib -= request.memory_mib
            gpus = tuple(self._gpus[: request.gpu])
            del self._gpus[: request.gpu]
            future.set_result(Grant(request, gpus))
        self._waiting = still_waiting

    def _short_of(self, request: ResourceRequest) -> list[str]:
        wanted = {
            "cpu": (request.cpu, self._cpu),
            "memory": (request.memory_mib, self._memory_mib),
            "gpu": (request.gpu, len(self._gpus)),
        }
        return [resource for resource, (asked, free) in wanted.items() if asked > free]


def _touched(request: ResourceRequest) -> set[str]:
    amounts = {"cpu": request.cpu, "memory": request.memory_mib, "gpu": request.gpu}
    return {resource for resource, amount in amounts.items() if amount}
