"""Checks of this machine: is everything there that the main job needs, and how to mend what is not.

Nothing is started and nothing is made. A check that hangs (a dead Docker socket, a lost network disk) is given up.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from clara_flow.errors import ClaraFlowError
from clara_flow.services.doctor_dicom import check_dicom, check_gateway
from clara_flow.services.findings import Finding, Findings, Level, size
from clara_flow.settings import Settings

TIME_LIMIT_S = 10.0  # for a check that hangs; all together take a second or two
ENGINE_TIMEOUT_S = 2
PACKAGE = "clara-flow"
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  looked at, not written
SMALL_DISK_BYTES = 10 * 2**30
FULL_DISK_BYTES = 2**30
SMALL_SHM_BYTES = 64 * 2**20
SLOW_FSYNC_S = 0.2


def examine(settings: Settings) -> list[Finding]:
    """All findings in the order of CHECKS, within about TIME_LIMIT_S seconds."""
    found: dict[str, list[Finding]] = {}
    threads = [
        threading.Thread(target=_examine_one, args=(name, check, settings, found), daemon=True, name=f"doctor-{name}")
        for name, check in CHECKS.items()
    ]
    deadline = time.monotonic() + TIME_LIMIT_S
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return [finding for name in CHECKS for finding in found.get(name) or [_given_up(name)]]


def prevents_the_main_job(findings: list[Finding]) -> bool:
    """Whether one of them is a problem."""
    return any(finding.level is Level.PROBLEM for finding in findings)


def _examine_one(
    name: str, check: Callable[[Settings], Findings], settings: Settings, found: dict[str, list[Finding]]
) -> None:
    try:
        found[name] = list(check(settings))
    except ClaraFlowError as error:
        found[name] = [Finding(name, Level.PROBLEM, str(error))]
    except ImportError as error:
        found[name] = [Finding(name, Level.PROBLEM, f"cannot be checked: {error}", _pip("server"))]


def _given_up(name: str) -> Finding:
    return Finding(
        name, Level.PROBLEM, f"no answer within {TIME_LIMIT_S:g} s", "Look at the disk or network behind it."
    )


def check_python(settings: Settings) -> Findings:
    """The interpreter's version against the package's."""
    from packaging.specifiers import SpecifierSet

    wanted = importlib.metadata.metadata(PACKAGE)["Requires-Python"]
    version = platform.python_version()
    if SpecifierSet(wanted).contains(version):
        yield Finding("python", Level.OK, version)
    else:
        yield Finding("python", Level.PROBLEM, f"{version} is not {wanted}", "Install Python 3.11 or 3.12.")


def check_packages(settings: Settings) -> Findings:
    """The packages of each extra."""
    from packaging.requirements import Requirement

    requirements = [Requirement(line) for line in importlib.metadata.requires(PACKAGE) or ()]
    operators_level = Level.PROBLEM if settings.runtime == "process" else Level.NOTE
    for extra, level in {"server": Level.PROBLEM, "operators": operators_level, "demo": Level.NOTE}.items():
        wanted = [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": extra})]
        lacks = [problem for requirement in wanted if (problem := _lack(requirement.name, requirement.specifier))]
        if lacks:
            yield Finding(f"packages [{extra}]", level, ", ".join(lacks), _pip(extra))
        else:
            yield Finding(f"packages [{extra}]", Level.OK, f"{len(wanted)} installed")


def _lack(name: str, specifier: object) -> str:
    from packaging.specifiers import SpecifierSet

    assert isinstance(specifier, SpecifierSet)  # noqa: S101  the type of an optional import
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"{name} is missing"
    return "" if specifier.contains(version, prereleases=True) else f"{name} {version} is not {specifier}"


def _pip(extra: str) -> str:
    return f"pip install '{PACKAGE}[{extra}]'"


def check_machine(settings: Settings) -> Findings:
    """Cores, memory and GPUs, and whether every bundled operator fits."""
    from clara_flow.infra.gpu.model import Health
    from clara_flow.infra.gpu.node import read_node, to_ledger_node
    from clara_flow.infra.images.catalog import bundled
    from clara_flow.infra.ledger.ledger import missing_for
    from clara_flow.infra.ledger.model import Amounts

    machine = read_node()
    node = to_ledger_node(machine, name=machine.hostname, jobs=1)
    text = f"{machine.cpu} cores, {machine.memory_mib} MiB memory"
    too_large = []
    for operator in bundled().operators.values():
        wants = operator.requests
        amounts = Amounts(cpu=wants.cpu, memory_mib=wants.memory, gpu=wants.gpu)
        if missing := missing_for([node], None, amounts):
            lacks = ", ".join(f"{amount} {resource}" for resource, amount in missing.items())
            too_large.append(f"{operator.name} lacks {lacks}")
    if too_large:
        remedy = "Take a larger machine, or lower `requests` in the definition."
        yield Finding("cores and memory", Level.NOTE, f"{text}; the operator {'; '.join(too_large)}", remedy)
    else:
        yield Finding("cores and memory", Level.OK, f"{text}; every bundled operator fits")
    gpus = [f"{gpu.name} ({gpu.memory_mib} MiB)" for gpu in machine.gpus]
    yield Finding("gpu", Level.OK, ", ".join(gpus) or "none; operators that ask for no GPU run")
    for gpu in machine.gpus:
        if gpu.health is Health.FAILED:
            remedy = "It gets no work until it is well; `clara-flow gpu status` shows all of them."
            yield Finding("gpu", Level.PROBLEM, f"{gpu.uuid} is {gpu.health}: {gpu.reason}", remedy)
        elif gpu.health is not Health.OK:
            remedy = "It gets work, and may be slow; `clara-flow gpu status` shows all of them."
            yield Finding("gpu", Level.NOTE, f"{gpu.uuid} is {gpu.health}: {gpu.reason}", remedy)


def check_data_folder(settings: Settings) -> Findings:
    """Is the folder, or the one that it would be made in, writable, durable, private and roomy?"""
    folder = settings.data_dir
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    place = f"{folder}" if there == folder else f"{folder} (will be made)"
    remedy = "Make it writable for this user, or set CLARA_FLOW_DATA_DIR to another folder."
    if not there.is_dir():
        yield Finding("data folder", Level.PROBLEM, f"{folder} cannot be made: {there} is no folder", remedy)
        return
    try:
        took_s = _try_writing(there)
    except OSError as error:
        yield Finding("data folder", Level.PROBLEM, f"{place}: {error.strerror}", remedy)
    else:
        if took_s > SLOW_FSYNC_S:
            slow = f"{place}: writing through to the disk takes {took_s * 1000:.0f} ms"
            yield Finding("data folder", Level.NOTE, slow, "A local disk, best an SSD, makes jobs quicker.")
        else:
            yield Finding("data folder", Level.OK, f"{place} is writable")
    if there == folder and stat.S_IMODE(folder.stat().st_mode) & 0o077:
        text = f"other accounts of this machine can enter {folder}, which holds patients' data"
        yield Finding("data folder", Level.NOTE, text, f"chmod 700 {folder}")
    yield _disk(settings, there)


def _try_writing(folder: Path) -> float:
    """Seconds that a small write takes until it is on the disk. Raises OSError."""
    begin = time.monotonic()
    with tempfile.TemporaryFile(dir=folder) as probe:
        probe.write(b"\0" * 4096)
        probe.flush()
        os.fsync(probe.fileno())
    return time.monotonic() - begin


def _disk(settings: Settings, folder: Path) -> Finding:
    usage = shutil.disk_usage(folder)
    percent = 100 * usage.used / (usage.used + usage.free)
    text = f"{size(usage.free)} free, {percent:.0f} % used"
    if usage.free < FULL_DISK_BYTES:
        return Finding("disk", Level.PROBLEM, text, "Make room, or set CLARA_FLOW_DATA_DIR to a larger disk.")
    if percent > settings.storage_limit_percent:
        refusal = f"{text}: above {settings.storage_limit_percent} % jobs are refused"
        return Finding("disk", Level.PROBLEM, refusal, "Make room, or raise CLARA_FLOW_STORAGE_LIMIT_PERCENT.")
    if usage.free < SMALL_DISK_BYTES:
        return Finding("disk", Level.NOTE, text, "A study with its volumes takes about 1 GiB while it is worked on.")
    return Finding("disk", Level.OK, text)


def check_shared_memory(settings: Settings) -> Findings:
    """Size of /dev/shm, where PostgreSQL keeps what its processes share."""
    remedy = f"Mount a tmpfs of at least 1 GiB at {SHARED_MEMORY}; for a container: docker run --shm-size=1g."
    if not (SHARED_MEMORY.is_dir() and os.access(SHARED_MEMORY, os.W_OK)):
        yield Finding("shared memory", Level.PROBLEM, f"{SHARED_MEMORY} is missing or not writable", remedy)
        return
    usage = shutil.disk_usage(SHARED_MEMORY)
    text = f"{SHARED_MEMORY} has {size(usage.total)}, {size(usage.free)} free"
    if usage.free < SMALL_SHM_BYTES:
        yield Finding("shared memory", Level.NOTE, text, remedy)
    else:
        yield Finding("shared memory", Level.OK, text)


def check_docker(settings: Settings) -> Findings:
    """Is there an engine, with room, and with GPUs where the machine has some?"""
    import docker
    import requests
    from docker.errors import DockerException

    from clara_flow.infra.gpu.inventory import list_gpus

    needed = settings.runtime == "docker"
    base_url = settings.docker_base_url
    try:
        arguments = {"base_url": base_url} if base_url else docker.utils.kwargs_from_env()
        with closing(docker.APIClient(**arguments, timeout=ENGINE_TIMEOUT_S)) as engine:
            info = engine.info()
    except (DockerException, requests.exceptions.RequestException, OSError) as error:
        where = base_url or os.environ.get("DOCKER_HOST") or "its default socket"
        remedy = "Start it and let this account use it (group docker), or name another by CLARA_FLOW_DOCKER_BASE_URL."
        if not needed:
            remedy += " The runtime `process` works without it."
        yield Finding(
            "docker",
            Level.PROBLEM if needed else Level.NOTE,
            f"no engine answers at {where}: {_root_cause(error)}",
            remedy,
        )
        return
    root = Path(info["DockerRootDir"])
    room = shutil.disk_usage(root).free if root.is_dir() else None
    text = f"engine {info['ServerVersion']}" + (f", {size(room)} free in {root}" if room is not None else "")
    if room is not None and room < SMALL_DISK_BYTES:
        yield Finding("docker", Level.NOTE, text, "Operator images take some GiB: docker system prune makes room.")
    else:
        yield Finding("docker", Level.OK, text)
    if list_gpus() and "nvidia" not in info.get("Runtimes", {}):
        lacks = "the engine has no nvidia runtime: containers get no GPU"
        yield Finding("docker", Level.NOTE, lacks, "Install the NVIDIA container toolkit and restart the engine.")


def _root_cause(error: BaseException) -> str:
    """What the operating system said, out of the layers that the HTTP libraries wrap around it."""
    reason = str(error)
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, OSError) and chain.strerror:
            reason = chain.strerror
        elif isinstance(chain, TimeoutError):
            reason = f"no answer within {ENGINE_TIMEOUT_S} s"
        chain = chain.__cause__ or chain.__context__
    return reason


def check_postgresql(settings: Settings) -> Findings:
    """The programs of the embedded server, or an answer of the external one."""
    from clara_flow.infra.postgres import embedded
    from clara_flow.infra.postgres.account import Account
    from clara_flow.infra.postgres.binaries import find_binaries
    from clara_flow.services import postgres

    service = postgres.service_of(settings)
    if service.is_external:
        problem = service.problem()
        service.end()
        if problem:
            yield Finding("postgresql", Level.PROBLEM, problem)
        else:
            yield Finding("postgresql", Level.OK, f"external: {service.address}")
        return
    cluster = embedded(settings).cluster
    version_file = cluster / "PG_VERSION"
    major = int(version_file.read_text(encoding="ascii")) if version_file.exists() else None
    binaries = find_binaries(settings.postgres_bin_dir, Account.of_cluster(cluster), cluster_major=major)
    yield Finding("postgresql", Level.OK, f"version {binaries.major} in {binaries.folder}")


def check_platform(settings: Settings) -> Findings:
    """Does it run; if not, are its ports free; who can reach it."""
    from clara_flow.services import ports, prefect_server
    from clara_flow.services.platform import look

    state = look(settings)
    unwell = [f"{s.name} is {s.state}" for s in state.services if s.state in {"unhealthy", "starting"}]
    if unwell:
        yield Finding("platform", Level.NOTE, ", ".join(unwell), "`clara-flow status` says why.")
    else:
        yield Finding("platform", Level.OK, "is up" if state.is_up else "is not started; `clara-flow run` starts it")
    server = prefect_server.service_of(settings)
    if server.is_external:
        if problem := server.problem():
            remedy = "Is it started, and is CLARA_FLOW_PREFECT_API_URL right (it ends in /api)?"
            yield Finding("prefect", Level.PROBLEM, problem, remedy)
        else:
            yield Finding("prefect", Level.OK, f"external: {server.address}")
    used = [] if server.is_external else [("prefect_port", Level.PROBLEM)]
    own = state.pid and f":{settings.prefect_port}/api" in state.prefect_api_url
    for setting, level in [*used, ("grpc_port", Level.NOTE)]:
        port = getattr(settings, setting)
        if setting == "prefect_port" and own:
            yield Finding(f"port {port}", Level.OK, "is our own Prefect server's")
        elif reason := ports.why_not_free(settings.host, port):
            remedy = f"Stop that program, or choose another port with CLARA_FLOW_{setting.upper()}."
            yield Finding(f"port {port}", level, reason, remedy)
        else:
            yield Finding(f"port {port}", Level.OK, f"is free ({setting})")
    if not server.is_external and settings.host not in {"127.0.0.1", "localhost", "::1"}:
        text = f"listens on {settings.host}: whoever reaches it can run programs here, for Prefect asks for no password"
        yield Finding("network", Level.NOTE, text, "Keep CLARA_FLOW_HOST at 127.0.0.1, or put a firewall before it.")


def check_models(settings: Settings) -> Findings:
    """The models of the bundled operators."""
    from clara_flow.infra.images.catalog import bundled
    from clara_flow.tasks.ensure_models import READY_MARK

    for operator in bundled().operators.values():
        for model in operator.models:
            ready = (settings.data_dir / "models" / model.name / READY_MARK).is_file()
            text = f"{model.name} is ready" if ready else f"{model.name} is made when {operator.name} first runs"
            yield Finding("model", Level.OK if ready else Level.NOTE, text)


CHECKS: dict[str, Callable[[Settings], Findings]] = {
    "python": check_python,
    "packages": check_packages,
    "cores and memory": check_machine,
    "data folder": check_data_folder,
    "shared memory": check_shared_memory,
    "postgresql": check_postgresql,
    "platform": check_platform,
    "dicom": check_dicom,
    "gateway": check_gateway,
    "docker": check_docker,
    "model": check_models,
}
