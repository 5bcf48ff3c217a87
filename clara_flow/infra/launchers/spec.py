"""The words the machinery understands: what to launch, with which resources, and how it ended.

A launcher knows no plan: a task makes a LaunchSpec out of the plan's operator. Times are UTC; sizes MiB or bytes as
named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A folder or file of this machine that the operator sees at `target`.

    source      absolute path on this machine; exists before launch.
    target      absolute path inside the container.
    read_only   the operator cannot change it, as far as the runtime can enforce that.
    """

    source: Path
    target: str
    read_only: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceRequest:
    """What one running operator holds.

    memory_mib      a hard limit.
    gpu             whole devices.
    gpu_memory_mib  instead of whole devices: a share of the memory of one that others may share.
    """

    cpu: int = 1
    memory_mib: int = 1024
    gpu: int = 0
    gpu_memory_mib: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RequiredOutput:
    """An output folder that must hold at least one file after exit status 0. `path` is on this machine."""

    name: str
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryAuth:
    """Login for pulling one image."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSpec:
    """One attempt of one operator.

    operator        its name in the pipeline.
    job_id          labels everything the launcher makes, so that a reaper finds it.
    image           reference with tag, as a container engine takes it (process runtime: for messages only).
    command         arguments; docker: given to the image's entry point or run as they are when it has none;
                    process: the whole command line.
    environment     complete (the host's environment is not inherited, except what a runtime needs to work).
    mounts          inputs read-only, outputs read-write; the process runtime cannot re-map paths, so a task asks
                    `Launcher.path_inside(mount)` for the path that it must tell the operator.
    outputs         checked after exit status 0 (OutputMissing).
    gpu_devices     UUIDs of the leased GPUs; no other GPU is visible to the operator.
    timeout_s       None = unlimited; after it the operator is asked to stop, `grace_s` later it is killed.
    cancel_grace_s  the same for an operator that nobody wants any more.
    log_path        file that takes stdout and stderr, cut at `log_limit_bytes` (head and tail are kept).
    network         False = no network (docker) or no promise (process).
    """

    operator: str
    job_id: str
    attempt: int = 1
    image: str
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    mounts: tuple[Mount, ...] = ()
    outputs: tuple[RequiredOutput, ...] = ()
    request: ResourceRequest = ResourceRequest()
    gpu_devices: tuple[str, ...] = ()
    timeout_s: float | None = None
    grace_s: float = 15.0
    cancel_grace_s: float = 1.0
    log_path: Path
    log_limit_bytes: int = 64 * 2**20
    network: bool = False
    pull_policy: str = "if-not-present"
    registry_auth: RegistryAuth | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitReport:
    """How a successful attempt went. Failed attempts raise an OperatorError instead.

    peak_memory_bytes   highest memory use the runtime saw; None where it cannot tell.
    cpu_s               CPU seconds used; None where the runtime cannot tell.
    log_bytes           bytes the operator wrote to its log, also those that were cut.
    identity            container id or `host:pid`, for people who search logs.
    """

    started: datetime
    stopped: datetime
    exit_code: int = 0
    peak_memory_bytes: int | None = None
    cpu_s: float | None = None
    log_bytes: int = 0
    identity: str = ""

    @property
    def run_time_s(self) -> float:
        """Seconds between launch and exit."""
        return (self.stopped - self.started).total_seconds()
