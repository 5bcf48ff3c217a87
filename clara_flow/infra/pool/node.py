"""One machine of the pool: everything that a worker does apart from talking to Prefect's work pool.

It announces the machine, keeps the leases of its jobs alive, gives admitted jobs to warm runners, decides for the whole
pool while it leads, and repairs what others left behind.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from clara_flow.errors import ClaraFlowError, InputError, ServiceError
from clara_flow.infra.fastio.volumes import FastIOVolumes
from clara_flow.infra.gpu.inventory import GpuWatch
from clara_flow.infra.gpu.node import read_node
from clara_flow.infra.pool.dispatcher import Dispatcher, Waiting
from clara_flow.infra.pool.housekeeping import Housekeeping, launchers_of
from clara_flow.infra.pool.runners import RunnerEnd, RunnerSet, RunnerStatus
from clara_flow.infra.postgres import records_url
from clara_flow.records import jobs, leases, nodes
from clara_flow.records.database import connect
from clara_flow.records.doorbell import Doorbell
from clara_flow.records.outages import Outage
from clara_flow.records.owner import Owner
from clara_flow.records.payload_store import PayloadStore
from clara_flow.settings import Settings

log = logging.getLogger(__name__)

RUNNER_PROGRAM = "clara_flow.deployments.job_runner"  # named, not imported: it stands above this room
LEAST_JOBS = 4
STOP_GRACE_S = 5.0
AWAY_S = 1.0  # pause when the database is away


@dataclass(frozen=True, slots=True)
class Joined:
    """A node's membership: its name in the pool and the session of this worker."""

    name: str
    session: uuid.UUID


class PoolNode:
    """This machine as a member of the pool, from `start` to `stop`.

    environment     of the runners, beyond this process's.
    on_waiting      called about once a second, on the node that leads, with the first of those who wait and for what.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        environment: Mapping[str, str] = os.environ,
        on_waiting: Callable[[Sequence[Waiting]], None] = lambda waiting: None,
    ) -> None:
        self.settings = settings
        self.url = records_url(settings)
        self.joined = Joined(settings.node_name or socket.gethostname(), uuid.uuid4())
        self.jobs_at_once = settings.node_jobs or max(LEAST_JOBS, 2 * (len(os.sched_getaffinity(0))))
        self.owner = Owner.of_this_process()
        self.dispatcher = Dispatcher(
            self.url,
            lease_ttl_s=settings.lease_ttl_s,
            poll_s=settings.poll_s,
            ageing_s=settings.ageing_s,
            on_waiting=on_waiting,
        )
        self.runners = RunnerSet(
            RUNNER_PROGRAM,
            size=settings.warm_runners,
            most=self.jobs_at_once + settings.warm_runners,
            jobs_per_runner=settings.runner_jobs,
            memory_limit_mib=settings.runner_memory_limit_mib,
            environment=environment,
            log_path=settings.data_dir / "logs" / "runners.log",
            on_end=self._on_runner_end,
        )
        self.gpus = GpuWatch(self.announce)
        self._engine = connect(self.url)
        self._bell = Doorbell(self.url, (leases.GRANTS,))
        self._stack = ExitStack()
        self._stopping = threading.Event()
        self._orphans = threading.Event()
        self._crashed: deque[RunnerEnd] = deque()
        self.housekeeping = Housekeeping(
            self._engine,
            PayloadStore(settings.data_dir / "payloads"),
            launchers_of(settings),
            FastIOVolumes(),
            settings,
        )

    def start(self) -> None:
        """Join the pool. Raises ServiceError when the database cannot be reached."""
        (self.settings.data_dir / "logs").mkdir(parents=True, exist_ok=True, mode=0o700)
        self.housekeeping.recover()  # what an earlier worker of this machine left
        self.gpus.start()
        self._stack.callback(self.gpus.stop)
        self.announce()
        self._stack.callback(self._engine.dispose)
        self._stack.callback(self.leave)
        self.housekeeping.start()
        self._stack.callback(self.housekeeping.stop)
        self.runners.start()
        self._stack.callback(self.runners.stop, STOP_GRACE_S)
        self._stack.callback(self._bell.close)
        for work in (self._keep_alive, self._hand_out, self._recover):
            thread = threading.Thread(target=work, name="pool-node", daemon=True)
            thread.start()
            self._stack.callback(thread.join)
        self._stack.callback(self._bell.interrupt)
        self._stack.callback(self._orphans.set)
        self._stack.callback(self._stopping.set)
        self.dispatcher.start()
        self._stack.callback(self.dispatcher.stop)

    def stop(self) -> None:
        """Leave the pool: the jobs that run here stop, and go on from their sealed operators elsewhere or later."""
        self._stack.close()

    def status(self) -> list[RunnerStatus]:
        """The runners and what they do."""
        return self.runners.runners()

    def announce(self) -> None:
        """Write down what this machine has."""
        inventory = read_node(self.gpus.gpus, fastio_limit_mib=self.settings.fastio_limit_mib)
        nodes.announce(
            self._engine,
            self.joined.name,
            self.joined.session,
            self.owner,
            inventory=inventory.to_json(),
            jobs=self.jobs_at_once,
            ttl_s=self.settings.lease_ttl_s,
        )

    def leave(self) -> None:
        """Say that nothing new shall come here."""
        try:
            nodes.leave(self._engine, self.joined.name, self.joined.session)
        except ServiceError as error:  # it will fall silent
            log.info("the node could not say that it leaves: %s", error)

    def _keep_alive(self) -> None:
        """Renew this node and its leases, well before they end."""
        outage = Outage(log, "the node's heartbeat")
        while not self._stopping.wait(self.settings.lease_ttl_s / 4):
            try:
                if not nodes.heartbeat(self._engine, self.joined.name, self.joined.session, self.settings.lease_ttl_s):
                    self.announce()
                leases.renew(self._engine, self.joined.name, self.settings.lease_ttl_s)
                if not self.runners.is_alive():  # nothing would ever run here again
                    log.error("the runner set broke; this worker ends, and is started anew")
                    os.kill(os.getpid(), signal.SIGTERM)
                outage.over()
            except ClaraFlowError as error:
                outage.met(error)

    def _hand_out(self) -> None:
        """Give every job that was admitted to this node to a runner."""
        admitted, outage = True, Outage(log, "the handing out of jobs")
        while not self._stopping.is_set():
            try:
                if admitted:
                    for job in leases.admitted(self._engine, self.joined.name):
                        limit_s = job.limit_s + 2 * self.settings.stop_grace_s
                        self.runners.run(job.job_id, facts={}, limit_s=limit_s)
                    outage.over()
                notices = self._bell.wait(self.settings.poll_s)
            except ClaraFlowError as error:
                outage.met(error)
                notices = self._bell.wait(1.0)
            admitted = not notices or any(
                facts.get("reconnected") or (facts.get("node") == self.joined.name and facts.get("operator") == "")
                for _, facts in notices
            )

    def _on_runner_end(self, end: RunnerEnd) -> None:
        """A runner died with its job: the job is queued again, whether it had begun or not."""
        if end.job_id is None:
            return
        self._crashed.append(end)
        log.warning("the runner %d of job %s ended: %s", end.pid, end.job_id, end.reason)
        self._orphans.set()

    def _recover(self) -> None:
        """Give the jobs of runners that died back to the queue, as soon as what they had started is ended."""
        while self._orphans.wait() and not self._stopping.is_set():
            self._orphans.clear()
            self._requeue_unbegun()  # first: what was begun is queued again by recover, and may be back here at once
            self.housekeeping.recover()
            if self._crashed:
                self._stopping.wait(AWAY_S)
                self._orphans.set()

    def _requeue_unbegun(self) -> None:
        """Queue again what runners died with before they had begun it; what the database does not take waits."""
        for end in list(self._crashed):
            try:
                if end.job_id is not None:
                    reason = f"its runner ended before it began: {end.reason}"
                    jobs.runner_crashed(self._engine, end.job_id, node=self.joined.name, reason=reason)
            except ServiceError as error:
                log.warning("job %s is queued again later: %s", end.job_id, error)
                return
            except InputError:  # it was deleted meanwhile
                log.info("job %s is not there any more", end.job_id)
            self._crashed.popleft()
