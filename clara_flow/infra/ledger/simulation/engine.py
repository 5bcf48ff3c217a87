"""The event engine: jobs that behave as in the pool, on a virtual clock.

A queued job asks to be admitted, with its first operator; an operator asks when its upstreams have ended; the job's own
lease ends with its last operator. A job that shall yield lets its running operators end and goes back to the queue; one
whose machine fell silent goes back when its leases expire. Operators that have ended are not run again.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from uuid import UUID

from clara_flow.infra.ledger.model import Amounts, Ask, Grant, Priority, Yield
from clara_flow.infra.ledger.simulation.books import Books, CapacityBroken
from clara_flow.infra.ledger.simulation.jobs import Job, Outcome, Run, Story
from clara_flow.infra.ledger.simulation.measures import Hourly
from clara_flow.infra.ledger.simulation.patience import Patience
from clara_flow.infra.ledger.simulation.policy import Policy
from clara_flow.infra.ledger.simulation.workload import (
    Becomes,
    MachineEvent,
    SimOperator,
    Workload,
    room_for,
    whole_job,
)

TICK_S = 5.0  # the dispatcher decides again after so long, whatever happens (setting `poll_s`)
PATIENCE_TICKS = 1000  # nothing runs, nothing is to come, and nobody was served for so long: nobody ever will be

Progress = Callable[[float], None]


class Simulation:
    """One workload under one policy; `run` once, then read `stories`, `books`, `patience` and `gpu_used`."""

    def __init__(self, workload: Workload, policy: Policy, *, progress: Progress = lambda share: None) -> None:
        self.workload, self.policy, self.progress = workload, policy, progress
        self.scheduler = policy.make(workload.ageing_s)
        self.nodes = {node.name: node for node in workload.nodes}
        self.books = Books(workload.nodes, workload.quotas, enforced=policy.quotas)
        self.now = 0.0
        self.stories: list[Story] = []
        self.patience = Patience(workload, policy)
        self.gpu_used = Hourly()
        self._jobs: dict[UUID, Job] = {}
        self._asks: dict[UUID, tuple[Ask, Job]] = {}
        self._waiting: Counter[str] = Counter()
        self._on_device: defaultdict[str, dict[tuple[UUID, str], Run]] = defaultdict(dict)
        self._busy: dict[str, float] = {}
        self._silent: set[str] = set()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = itertools.count()
        self._ids = (UUID(int=number) for number in itertools.count(1))
        self._changed = False
        self._ended = 0

    def run(self) -> None:
        """Replay it all. Raises CapacityBroken when the scheduler gives what is not there."""
        self.scheduler.set_nodes(list(self.nodes.values()))
        self.scheduler.set_quotas(list(self.workload.quotas) if self.policy.quotas else [])
        for event in self.workload.events:
            self._at(event.at_s, partial(self._machine, event))
        for number, arrival in enumerate(self.workload.arrivals):
            self._at(arrival.at_s, partial(self._arrive, number))
        in_vain = 0
        while (self._events or self._asks) and in_vain < PATIENCE_TICKS:
            in_vain = 0 if self._step() or self._events else in_vain + 1
        for job in self._jobs.values():
            self._tell_end(job.story, Outcome.UNSERVED)

    def _step(self) -> bool:
        """Go on to the next instant at which something happens; whether anything was decided then."""
        upcoming = self._events[0][0] if self._events else float("inf")
        self._go_to(min(upcoming, self.now + TICK_S) if self._asks else upcoming)
        while self._events and self._events[0][0] <= self.now:
            heapq.heappop(self._events)[2]()
        decided = False
        while True:
            self._changed = False
            for decision in self.scheduler.decide(self.now):
                decided = True
                if isinstance(decision, Grant):
                    self._granted(decision)
                else:
                    self._yield(decision)
            if not self._changed:
                return decided

    def _go_to(self, now: float) -> None:
        self.books.advance(now, [tenant for tenant, count in self._waiting.items() if count])
        self.gpu_used.add(sum(self._busy.values()), self.now, now)
        self.patience.advance(now - self.now)
        self.now = now

    def _at(self, when: float, happens: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._sequence), happens))

    # What happens to jobs

    def _arrive(self, number: int) -> None:
        arrival = self.workload.arrivals[number]
        pipeline = self.workload.pipelines[arrival.pipeline]
        story = Story(
            number=number,
            pipeline=pipeline.name,
            tenant=arrival.tenant,
            priority=arrival.priority,
            arrived=arrival.at_s,
        )
        self.stories.append(story)
        amounts = whole_job(pipeline) if self.policy.whole_job else pipeline.job
        if self.policy.whole_job and not any(room_for(amounts, node) for node in self.workload.nodes):
            amounts, story.cut = self._cut(amounts), True
        job = Job(
            id=next(self._ids),
            arrival=arrival,
            pipeline=pipeline,
            durations=self.workload.durations(number),
            story=story,
            holds_all=pipeline.gang or self.policy.whole_job,
            amounts=amounts,
        )
        if self._never_fits(job):
            self._tell_end(story, Outcome.REFUSED)
        else:
            self._jobs[job.id] = job
            self._queue(job)

    def _cut(self, amounts: Amounts) -> Amounts:
        """What the machine with most GPUs has of that."""
        largest = max(self.workload.nodes, key=lambda node: (len(node.devices), node.cpu, node.memory_mib))
        return replace(
            amounts,
            cpu=min(amounts.cpu, largest.cpu),
            memory_mib=min(amounts.memory_mib, largest.memory_mib),
            gpu=min(amounts.gpu, len(largest.devices)),
        )

    def _never_fits(self, job: Job) -> bool:
        """What the platform checks when a job is created: no machine, or no quota, would ever hold it."""
        needs = [job.amounts, *(operator.amounts for operator in job.pipeline.operators)]
        hard = self.books.hard.get(job.arrival.tenant, {})
        if any(getattr(need, name) > limit for name, limit in hard.items() for need in needs):
            return True
        return not any(all(room_for(need, node) for need in needs) for node in self.workload.nodes)

    def _queue(self, job: Job) -> None:
        """The job asks to be admitted; its wait counts from its arrival, also when it comes back."""
        operators, arrival = job.pipeline.operators, job.arrival
        first = None if job.holds_all else job.ready()[0]
        self._ask(
            job,
            Ask(
                id=job.id,
                job_id=job.id,
                tenant=arrival.tenant,
                priority=arrival.priority,
                amounts=job.amounts,
                first=(first.name, first.amounts) if first else None,
                needs=() if job.holds_all else tuple(dict.fromkeys(operator.amounts for operator in operators)),
                asked=arrival.at_s,
                limit_s=job.pipeline.limit_s + job.pipeline.grace_s,
                preemptible=job.pipeline.preemptible,
            ),
        )

    def _advance(self, job: Job) -> None:
        """What is ready asks, or begins where the job holds everything already."""
        for operator in job.ready():
            if job.holds_all:
                self._start_inside(job, operator)
                continue
            ask = Ask(
                id=next(self._ids),
                job_id=job.id,
                operator=operator.name,
                tenant=job.arrival.tenant,
                priority=job.arrival.priority,
                amounts=operator.amounts,
                node=job.node,
                asked=self.now,
                limit_s=self._limit_s(job, operator) + job.pipeline.grace_s,
                expected_s=operator.duration.median_s,
                preemptible=job.pipeline.preemptible,
            )
            job.asks[operator.name] = ask.id
            self._ask(job, ask)

    def _limit_s(self, job: Job, operator: SimOperator) -> float:
        left_s = max(0.0, job.deadline - self.now)
        return min(left_s, operator.limit_s) if operator.limit_s is not None else left_s

    def _ask(self, job: Job, ask: Ask) -> None:
        self._asks[ask.id] = (ask, job)
        self._waiting[ask.tenant] += self._competes(ask)
        self.patience.asked(ask, self.now)
        self.scheduler.ask(ask)
        self._changed = True

    def _competes(self, ask: Ask) -> bool:
        """Whether only others hold it back, and not the emergency lane's privilege or a limit of its own speaks."""
        return ask.priority is not Priority.IMMEDIATE and not self.books.hard.get(ask.tenant)

    def _withdraw(self, ask_id: UUID) -> None:
        self.patience.withdrawn(self._asks[ask_id][0])
        self._forget(ask_id)
        self.scheduler.withdraw(ask_id)
        self._changed = True

    def _forget(self, ask_id: UUID) -> Job:
        ask, job = self._asks.pop(ask_id)
        self._waiting[ask.tenant] -= self._competes(ask)
        job.asks.pop(ask.operator, None)
        return job

    def _granted(self, grant: Grant) -> None:
        if grant.ask.id not in self._asks:
            raise CapacityBroken(f"at {self.now:.3f} s, {grant.ask.id} was granted and had not asked")
        ask = self._asks[grant.ask.id][0]
        self.patience.granted(ask, self.now)
        job = self._forget(ask.id)
        operators = {operator.name: operator for operator in job.pipeline.operators}
        expected = {ask.operator: ask.amounts} | dict([ask.first] if ask.first else [])
        if {lease.operator: lease.amounts for lease in grant.leases} != expected:
            raise CapacityBroken(f"at {self.now:.3f} s, the grant of {ask.id} is not what was asked for")
        for lease in grant.leases:
            self.books.take(lease, ask)
        if not ask.operator:
            own = next(lease for lease in grant.leases if not lease.operator)
            job.node, job.free, job.free_gpus = own.node, job.amounts, list(own.devices)
            job.incarnation += 1
            job.deadline = self.now + job.pipeline.limit_s
            self._at(job.deadline, partial(self._deadline, job, job.incarnation))
        for lease in grant.leases:
            if lease.operator:
                self._start(job, operators[lease.operator], lease.id, lease.devices)
        self._advance(job)

    def _yield(self, decision: Yield) -> None:
        job = self._jobs.get(decision.job_id)
        if job is None or job.node is None:
            raise CapacityBroken(f"at {self.now:.3f} s, job {decision.job_id} shall yield and does not run")
        if not job.pipeline.preemptible or job.arrival.priority >= decision.ask.priority:
            raise CapacityBroken(f"at {self.now:.3f} s, job {decision.job_id} shall yield and need not")
        if not job.yielding:
            job.yielding = True
            for ask_id in list(job.asks.values()):
                self._withdraw(ask_id)
            self._go_back_when_idle(job)

    def _go_back_when_idle(self, job: Job) -> None:
        if not job.runs:
            job.story.preempted += 1
            self._requeue(job)

    def _requeue(self, job: Job) -> None:
        """Back to the queue; what has ended stays ended."""
        self._let_go(job)
        self._queue(job)

    def _let_go(self, job: Job) -> None:
        """End everything that the job runs, asks for and holds."""
        for name in list(job.runs):
            self._stop(job, name)
        for ask_id in list(job.asks.values()):
            self._withdraw(ask_id)
        if job.node is None:
            self._withdraw(job.id)
        else:
            self._release(job.id)
        job.node, job.yielding = None, False

    def _deadline(self, job: Job, incarnation: int) -> None:
        alive = job.id in self._jobs and job.node is not None and job.node not in self._silent
        if alive and job.incarnation == incarnation:
            self._end(job, Outcome.TIMED_OUT)

    def _end(self, job: Job, outcome: Outcome) -> None:
        self._let_go(job)
        del self._jobs[job.id]
        self._tell_end(job.story, outcome)

    def _tell_end(self, story: Story, outcome: Outcome) -> None:
        story.outcome, story.ended = outcome, self.now
        self._ended += 1
        self.progress(self._ended / len(self.workload.arrivals))

    # What happens to operators

    def _start(self, job: Job, operator: SimOperator, lease_id: UUID | None, devices: tuple[str, ...]) -> None:
        run = Run(
            operator=operator,
            lease_id=lease_id,
            devices=devices,
            left_s=job.durations[operator.name],
            since=self.now,
        )
        job.runs[operator.name] = run
        if job.story.started is None:
            job.story.started = self.now
        if operator.limit_s is not None:
            self._at(self.now + operator.limit_s, partial(self._operator_limit, job, run))
        for uuid in devices:
            self._on_device[uuid][job.id, operator.name] = run
        self._set_pace(job, run)
        self._device_changed(devices)

    def _start_inside(self, job: Job, operator: SimOperator) -> None:
        """Begin within what the job holds; where that was cut, an operator may have to wait for its siblings."""
        amounts = operator.amounts
        wanted = amounts.gpu or (1 if amounts.gpu_memory_mib else 0)
        left = job.free + Amounts(cpu=-amounts.cpu, memory_mib=-amounts.memory_mib)
        if left.cpu >= 0 and left.memory_mib >= 0 and len(job.free_gpus) >= wanted:
            job.free = left
            gpus, job.free_gpus = tuple(job.free_gpus[:wanted]), job.free_gpus[wanted:]
            self._start(job, operator, None, gpus)

    def _set_pace(self, job: Job, run: Run) -> None:
        """Say when the run will end if nothing changes any more."""
        run.version += 1
        if job.node not in self._silent:
            self._at(self.now + run.left_s / run.rate, partial(self._operator_ended, job, run, run.version))

    def _device_changed(self, devices: tuple[str, ...]) -> None:
        """Those who together would keep a GPU busy for more than all its time are slowed down until it is just that."""
        for uuid in devices:
            runs = self._on_device[uuid]
            busy = sum(run.operator.duration.gpu_busy for run in runs.values())
            rate = 1.0 / max(1.0, busy)
            for (job_id, _), run in runs.items():
                if rate != run.rate:
                    run.left_s -= (self.now - run.since) * run.rate
                    run.since, run.rate = self.now, rate
                    self._set_pace(self._jobs[job_id], run)
            self._busy[uuid] = min(1.0, busy)

    def _operator_ended(self, job: Job, run: Run, version: int) -> None:
        if job.runs.get(run.operator.name) is not run or run.version != version:
            return
        self._stop(job, run.operator.name)
        job.done.add(run.operator.name)
        if len(job.done) == len(job.pipeline.operators):
            self._end(job, Outcome.COMPLETED)
        elif job.yielding:
            self._go_back_when_idle(job)
        else:
            self._advance(job)

    def _operator_limit(self, job: Job, run: Run) -> None:
        if job.runs.get(run.operator.name) is run and job.node not in self._silent:
            self._end(job, Outcome.TIMED_OUT)

    def _stop(self, job: Job, name: str) -> None:
        run = job.runs.pop(name)
        for uuid in run.devices:
            del self._on_device[uuid][job.id, name]
        self._device_changed(run.devices)
        if run.lease_id is not None:
            self._release(run.lease_id)
        else:
            amounts = run.operator.amounts
            job.free += Amounts(cpu=amounts.cpu, memory_mib=amounts.memory_mib)
            job.free_gpus.extend(run.devices)

    def _release(self, lease_id: UUID) -> None:
        self.books.give(lease_id)
        self.scheduler.release(lease_id, self.now)
        self._changed = True

    # What happens to machines

    def _machine(self, event: MachineEvent) -> None:
        failed, usable = event.becomes is Becomes.FAILED, event.becomes is Becomes.USABLE
        if event.device is not None:
            self._set_usable(event.node, event.device, usable)
            if failed:
                self._lose_device(event.device)
        elif failed:
            self._silent.add(event.node)
            for job in self._jobs.values():
                for run in job.runs.values() if job.node == event.node else ():
                    run.version += 1  # it will not end
            self._at(self.now + self.workload.lease_ttl_s, partial(self._expire, event.node))
        else:
            self._expire(event.node)
            self._set_usable(event.node, None, usable)

    def _expire(self, node: str) -> None:
        """The leases of a node that fell silent end; its jobs go elsewhere."""
        if node not in self._silent:
            return
        self._set_usable(node, None, False)
        for job in [job for job in self._jobs.values() if job.node == node]:
            job.story.lost += 1
            self._requeue(job)
        self._silent.discard(node)

    def _lose_device(self, device: str) -> None:
        """What runs on it is lost and asks again; a job that holds it for all of its time goes back to the queue."""
        holders = [self._jobs[lease.job_id] for lease in self.books.leases.values() if device in lease.devices]
        for job in holders:
            job.story.lost += 1
            if job.holds_all:
                self._requeue(job)
                continue
            for name in [name for name, run in job.runs.items() if device in run.devices]:
                self._stop(job, name)
            if job.yielding:
                self._go_back_when_idle(job)
            else:
                self._advance(job)

    def _set_usable(self, name: str, device: str | None, usable: bool) -> None:
        node = self.nodes[name]
        if device is None:
            node = replace(node, usable=usable)
        else:
            devices = (replace(d, usable=usable) if d.uuid == device else d for d in node.devices)
            node = replace(node, devices=tuple(devices))
        self.nodes[name] = node
        self.books.set_nodes(self.nodes.values())
        self.scheduler.set_nodes(list(self.nodes.values()))
        self._changed = True
