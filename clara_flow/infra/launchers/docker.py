"""The Docker launcher: an operator as a container with nothing but what its spec gives it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import select
import socket
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import docker
import requests
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.types import DeviceRequest, LogConfig, Ulimit
from docker.types import Mount as EngineMount

from clara_flow.errors import LauncherUnavailable
from clara_flow.infra.images.catalog import IMAGE_NAMESPACE
from clara_flow.infra.launchers.base import Attempt, Ending, Launcher
from clara_flow.infra.launchers.container_usage import Usage
from clara_flow.infra.launchers.log import OperatorLog
from clara_flow.infra.launchers.owner import Owner
from clara_flow.infra.launchers.spec import LaunchSpec, Mount
from clara_flow.settings import Runtime

JOB_LABEL = "clara-flow.job"
OWNER_LABEL = "clara-flow.owner"
OPERATOR_LABEL = "clara-flow.operator"
DEFAULT_SOCKET = "unix:///var/run/docker.sock"
OPERATOR_UID = 65532  # "nonroot" of the distroless images; used when the platform itself is root
PROCESS_LIMIT = 1024
WATCH_EVERY_S = 0.25
READ_BYTES = 256 * 2**10
FRAME_HEADER = struct.Struct(">xxxxL")  # stream, three zeros, size
REMOVED = "its container was removed by somebody else"
ENGINE_LOST = (requests.exceptions.RequestException, ConnectionError, TimeoutError)


class DockerLauncher(Launcher):
    """Runs operators as containers of a Docker engine on this machine.

    A container has no network unless the spec says so, a read-only root, no capabilities, no new privileges, an own
    /tmp in memory, limits on memory (without swap), CPU, processes, and none of the machine's GPUs but its own. It runs
    as the account of the platform; when that is root, as 65532, which is then made the owner of the read-write mounts,
    and the read-only ones must be readable for everyone.

    base_url        the engine, unix:///...; unset: DOCKER_HOST, or the default socket.
    """

    runtime: ClassVar[Runtime] = "docker"

    def __init__(self, base_url: str | None = None) -> None:
        self.base_url = base_url
        self._lock = threading.Lock()
        self._api: docker.APIClient | None = None
        self._has_gpus: bool | None = None

    @property
    def api(self) -> docker.APIClient:
        """The one client of this launcher. Raises LauncherUnavailable when no engine answers."""
        with self._lock:
            if self._api is None:
                self._api = connect(self.base_url)
            return self._api

    def has_gpus(self) -> bool:
        """True when the engine can hand GPUs to containers; asked once."""
        if self._has_gpus is None:
            self._has_gpus = "nvidia" in self.api.info().get("Runtimes", {})
        return self._has_gpus

    def path_inside(self, mount: Mount) -> str:
        """The mount's target."""
        return mount.target

    async def check(self) -> None:
        """Raises LauncherUnavailable when no engine answers."""
        await asyncio.to_thread(lambda: self.api.ping())

    async def reap(self, job_is_alive: Callable[[str], bool]) -> list[str]:
        """See Launcher.reap. Containers are known by their labels."""
        return await asyncio.to_thread(self._reap, job_is_alive)

    def _reap(self, job_is_alive: Callable[[str], bool]) -> list[str]:
        reaped = []
        for container in self.api.containers(all=True, filters={"label": OWNER_LABEL}):
            owner, job_id = Owner.parse(container["Labels"][OWNER_LABEL]), container["Labels"][JOB_LABEL]
            if owner.is_gone(job_id=job_id, job_is_alive=job_is_alive):
                remove_container(self.api, container["Id"])
                reaped.append(job_id)
        return reaped

    def _attempt(self, spec: LaunchSpec) -> Attempt:
        return DockerAttempt(spec, self)


class DockerAttempt(Attempt):
    """One container: created, attached to, started, waited for, removed; the calls that `docker run --rm` makes."""

    def __init__(self, spec: LaunchSpec, launcher: DockerLauncher) -> None:
        super().__init__(spec)
        self.launcher = launcher
        self.container = ""  # its name: known before the engine answers, so that a lost answer leaves nothing behind
        self.container_id = ""
        self.output: Any = None

    @property
    def identity(self) -> str:
        """Container id."""
        return self.container_id

    def launch(self) -> None:
        """Pull where the policy says so, create, attach, start."""
        api = self.launcher.api
        if self.spec.gpu_devices and not self.launcher.has_gpus():
            raise LauncherUnavailable(
                f"operator {self.spec.operator!r} was given a GPU, but the Docker engine has no nvidia runtime. "
                "Install the NVIDIA driver and container toolkit, or set `requests.gpu` to 0.",
                runtime="docker",
                operator=self.spec.operator,
            )
        try:
            if self.spec.pull_policy == "always" and not self._is_bundled:
                self._pull(api)
            hand_over(self.spec)
            container, host = container_settings(self.spec)
            self.container = f"clara-flow-{uuid.uuid4().hex}"
            container |= {"name": self.container, "host_config": api.create_host_config(**host)}
            try:
                created = api.create_container(**container)
            except ImageNotFound:
                if self.spec.pull_policy != "if-not-present" or self._is_bundled:
                    raise self._no_image("it is not on this machine") from None
                self._pull(api)
                created = api.create_container(**container)
            self.container_id = created["Id"]
            self.output = api.attach_socket(self.container, {"stdout": 1, "stderr": 1, "stream": 1})
            api.start(self.container)
        except APIError as error:
            raise LauncherUnavailable(
                f"operator {self.spec.operator!r} could not be launched from {self.spec.image!r}: {error.explanation}",
                runtime="docker",
                operator=self.spec.operator,
            ) from None
        except ENGINE_LOST as error:
            raise LauncherUnavailable(f"the Docker engine does not answer: {error}", runtime="docker") from None

    def follow(self, log: OperatorLog) -> Ending:
        """Read the log to its end, then ask how the container ended."""
        usage = Usage(self.launcher.api, self.container)
        try:
            for chunk in frames(self.output, look=usage.look):
                log.feed(chunk)
            exit_code = self.launcher.api.wait(self.container, timeout=None)["StatusCode"]
            state = self.launcher.api.inspect_container(self.container)["State"] if exit_code else {}
        except NotFound:
            return Ending(lost=REMOVED)
        except ENGINE_LOST as error:
            return Ending(lost=f"the Docker engine went away ({type(error).__name__})")
        if state.get("Status") == "removing":
            return Ending(lost=REMOVED)
        return Ending(
            exit_code=exit_code,
            out_of_memory=state.get("OOMKilled", False),
            peak_memory_bytes=usage.peak_memory_bytes,
            cpu_s=usage.cpu_s,
        )

    def ask_to_stop(self) -> None:
        """The image's stop signal; the engine itself kills after the grace, too, should we be gone by then."""
        stopper = threading.Thread(target=self._stop, name=f"stop-{self.container}", daemon=True)
        stopper.start()

    def kill(self) -> None:
        """SIGKILL to all its processes."""
        if self.container:
            with contextlib.suppress(APIError):  # it is not running (any more)
                self.launcher.api.kill(self.container)

    def remove(self) -> None:
        """Remove the container with its anonymous volumes, killing what runs."""
        if self.output is not None:
            self.output._response.close()  # the SDK hands out the socket alone, which keeps the connection open
            self.output = None
        if self.container:
            try:
                remove_container(self.launcher.api, self.container)
            except (DockerException, *ENGINE_LOST) as error:
                raise LauncherUnavailable(f"container {self.container} cannot be removed: {error}") from None
            self.container = ""

    def _stop(self) -> None:
        with contextlib.suppress(DockerException, *ENGINE_LOST):  # it has ended, or is killed in a moment
            self.launcher.api.stop(self.container, timeout=math.ceil(self.spec.grace_s))

    @property
    def _is_bundled(self) -> bool:
        """Bundled operators' images are built here; no registry has them."""
        return self.spec.image.startswith(f"{IMAGE_NAMESPACE}/")

    def _pull(self, api: docker.APIClient) -> None:
        auth = self.spec.registry_auth
        login = {"username": auth.username, "password": auth.password} if auth else None
        try:
            for event in api.pull(self.spec.image, stream=True, decode=True, auth_config=login):
                if self.abandoned.is_set():
                    raise self._no_image("its pull was given up")
                if "error" in event:
                    raise self._no_image(event["error"])
        except APIError as error:
            raise self._no_image(str(error.explanation)) from None

    def _no_image(self, reason: str) -> LauncherUnavailable:
        image = self.spec.image
        if self._is_bundled:
            name = image.removeprefix(f"{IMAGE_NAMESPACE}/").partition(":")[0]
            remedy = f"Build it: clara-flow operators build {name}"
        elif self.spec.pull_policy == "never":
            remedy = f"Load it (docker pull {image}), or set image_pull_policy to if-not-present."
        else:
            remedy = "Check its name and tag, the network, and the registry's login (registry_credentials)."
        return LauncherUnavailable(
            f"the image {image} cannot be used: {reason} (pull policy {self.spec.pull_policy}). {remedy}",
            runtime="docker",
            image=image,
            pull_policy=self.spec.pull_policy,
        )


def frames(output: Any, *, look: Callable[[], None]) -> Iterator[bytes]:
    """What a container writes, stdout and stderr as they come, until both are closed; `look` is called now and then.

    The engine cuts the log into frames, each with a header of stream and size (Docker API, "Attach to a container").
    """
    poller = select.poll()
    poller.register(output.fileno(), select.POLLIN)
    header, left, next_look = b"", 0, time.monotonic() + WATCH_EVERY_S
    while True:
        ready = poller.poll(WATCH_EVERY_S * 1000)
        if (now := time.monotonic()) >= next_look:
            look()
            next_look = now + WATCH_EVERY_S
        if not ready:
            continue
        block = memoryview(os.read(output.fileno(), READ_BYTES))
        if not block:
            return
        payload = []
        while block:
            if left == 0:
                wanted = FRAME_HEADER.size - len(header)
                header, block = header + block[:wanted], block[wanted:]
                if len(header) == FRAME_HEADER.size:
                    (left,), header = FRAME_HEADER.unpack(header), b""
            else:
                payload.append(block[:left])
                left, block = left - len(payload[-1]), block[left:]
        yield b"".join(payload)


def container_settings(spec: LaunchSpec) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of the SDK's create_container and create_host_config for a spec."""
    devices = DeviceRequest(driver="nvidia", device_ids=list(spec.gpu_devices), capabilities=[["gpu"]])
    memory_bytes = spec.request.memory_mib * 2**20
    uid, gid = account()
    host = {
        "mounts": [
            EngineMount(mount.target, str(mount.source), type="bind", read_only=mount.read_only)
            for mount in spec.mounts
        ],
        "network_mode": None if spec.network else "none",
        "read_only": True,
        "tmpfs": {"/tmp": "mode=1777"},  # noqa: S108 (the container's own)
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "mem_limit": memory_bytes,
        "memswap_limit": memory_bytes,  # memory and swap together: no swap
        "nano_cpus": max(1, spec.request.cpu) * 10**9,
        "pids_limit": PROCESS_LIMIT,
        "ulimits": [Ulimit(name="core", soft=0, hard=0)],  # a core dump holds the patient's images
        "init": True,
        "log_config": LogConfig(type="none"),  # the log is read as it comes; the engine keeps no second copy
        "device_requests": [devices] if spec.gpu_devices else None,
    }
    container = {
        "image": spec.image,
        "command": list(spec.command) or None,
        "user": f"{uid}:{gid}",
        "environment": {
            "HOME": "/tmp",  # noqa: S108
            **spec.environment,
            "NVIDIA_VISIBLE_DEVICES": ",".join(spec.gpu_devices),  # empty: none, also where the image says all
        },
        "labels": {
            JOB_LABEL: spec.job_id,
            OPERATOR_LABEL: spec.operator,
            OWNER_LABEL: str(Owner.current()),
        },
    }
    return container, host


def account() -> tuple[int, int]:
    """User and group that containers run as."""
    return (OPERATOR_UID, OPERATOR_UID) if os.geteuid() == 0 else (os.getuid(), os.getgid())


def hand_over(spec: LaunchSpec) -> None:
    """Make the container's account the owner of the read-write mounts, when we are root and it is not."""
    if os.geteuid() != 0:
        return
    for mount in spec.mounts:
        if not mount.read_only:
            for path in (mount.source, *mount.source.rglob("*")):
                os.chown(path, *account(), follow_symlinks=False)


def connect(base_url: str | None) -> docker.APIClient:
    """A client of the engine. Raises LauncherUnavailable with the remedy when none answers."""
    arguments = {"base_url": DEFAULT_SOCKET, **docker.utils.kwargs_from_env()}
    if base_url:
        arguments = {"base_url": base_url}
    where = arguments["base_url"]
    try:
        if where.startswith("unix://"):  # the SDK's own message buries the reason
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(where.removeprefix("unix://"))
        return docker.APIClient(**arguments)
    except (DockerException, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LauncherUnavailable(
            f"no Docker engine answers at {where}: {reason}. Start it and let this account use it (group docker), "
            "name another by CLARA_FLOW_DOCKER_BASE_URL, or use --runtime process.",
            runtime="docker",
        ) from None


def remove_container(api: docker.APIClient, container: str) -> None:
    """Kill and remove a container and its anonymous volumes; fine when it is gone already."""
    try:
        api.remove_container(container, force=True, v=True)
    except APIError as error:
        if error.status_code not in (404, 409):  # gone, or somebody else is removing it right now
            raise
