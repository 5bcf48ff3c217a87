"""A Docker engine for tests: the machine's own, or one of ours that parallel test sessions share.

Ours has its own folders below the cache (so images survive between runs), listens on a Unix socket alone, has no bridge
and touches no firewall rule. The last session that uses it stops it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from docker.errors import DockerException
from waiting import eventually

BASE_IMAGE = "clara-flow-test-base:bookworm"
PUBLIC_BASE_IMAGE = "python:3.11-slim"
PACKAGES = "python3,python3-pip,python3-venv,ca-certificates"
MIRROR = "http://deb.debian.org/debian"

STARTED: list[subprocess.Popen[bytes]] = []


def cache_dir() -> Path:
    """Folder outside the repository that survives test runs."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "clara-flow" / "test"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def answers(base_url: str) -> bool:
    """True when an engine answers there."""
    command = shutil.which("docker")
    if command is None:
        return False
    return subprocess.run([command, "-H", base_url, "version"], capture_output=True, check=False).returncode == 0


def expected_url() -> str:
    """Where `engine` will be: for a platform that is started before it."""
    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    return host if answers(host) else f"unix://{cache_dir()}/engine/docker.sock"


@contextlib.contextmanager
def engine() -> Iterator[str]:
    """Base URL of an engine. Skips the test with the reason when there is none and none can be started."""
    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if answers(host):
        yield host
        return
    if os.geteuid() != 0:
        pytest.skip("no Docker engine answers, and only root can start one")
    if (dockerd := shutil.which("dockerd")) is None:
        pytest.skip("no Docker engine answers, and dockerd is not installed")
    with _shared_engine(cache_dir() / "engine", dockerd) as base_url:
        yield base_url


@contextlib.contextmanager
def _shared_engine(folder: Path, dockerd: str) -> Iterator[str]:
    folder.mkdir(exist_ok=True)
    base_url = f"unix://{folder}/docker.sock"
    with (folder / "users.lock").open("w") as users, (folder / "start.lock").open("w") as start:
        fcntl.flock(start, fcntl.LOCK_EX)
        fcntl.flock(users, fcntl.LOCK_SH)
        if not answers(base_url):
            _start(folder, base_url, dockerd)
        fcntl.flock(start, fcntl.LOCK_UN)
        try:
            yield base_url
        finally:
            fcntl.flock(start, fcntl.LOCK_EX)
            with contextlib.suppress(BlockingIOError):  # somebody else still uses it
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _stop(folder)


def _start(folder: Path, base_url: str, dockerd: str) -> None:
    (folder / "docker.pid").unlink(missing_ok=True)
    with (folder / "dockerd.log").open("wb") as log:
        daemon = subprocess.Popen(
            [
                *(dockerd, "--host", base_url, "--pidfile", f"{folder}/docker.pid"),
                *("--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec"),
                *("--bridge", "none", "--iptables=false", "--ip6tables=false"),
            ],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    STARTED.append(daemon)
    eventually(lambda: daemon.poll() is not None or answers(base_url), within_s=60)
    if daemon.poll() is not None:
        last = (folder / "dockerd.log").read_text(errors="replace").strip().splitlines()[-1:]
        pytest.skip(f"no Docker engine answers, and dockerd does not start here: {' '.join(last)}")


def _stop(folder: Path) -> None:
    pid = int((folder / "docker.pid").read_text())
    os.kill(pid, signal.SIGTERM)

    def gone() -> bool:
        for daemon in STARTED:
            daemon.poll()  # nobody else collects the exit status of our own child
        return not Path(f"/proc/{pid}").exists()

    eventually(gone, within_s=60)
    for line in Path("/proc/mounts").read_text().splitlines():  # the engine leaves a name space mounted
        if (target := line.split()[1]).startswith(str(folder)):
            subprocess.run(["/bin/umount", target], capture_output=True, check=False)


def ensure_base_image(base_url: str) -> str:
    """Reference of an image with Python 3.11, venv and pip: ours where Debian can be unpacked, else the public one."""
    with contextlib.closing(docker.APIClient(base_url=base_url, timeout=600)) as client:
        for image in (BASE_IMAGE, PUBLIC_BASE_IMAGE):
            if client.images(name=image):
                return image
        if os.geteuid() == 0 and (debootstrap := shutil.which("debootstrap")):
            with (cache_dir() / "base.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not client.images(name=BASE_IMAGE):
                    repository, _, tag = BASE_IMAGE.partition(":")
                    client.import_image(str(_root_file_system(debootstrap)), repository=repository, tag=tag)
            return BASE_IMAGE
        try:
            client.pull(*PUBLIC_BASE_IMAGE.split(":"))
        except DockerException as error:
            pytest.skip(f"no base image: debootstrap is not installed (or needs root), and no pull: {error}")
        return PUBLIC_BASE_IMAGE


def _root_file_system(debootstrap: str) -> Path:
    archive = cache_dir() / "bookworm.tar"
    if not archive.exists():
        root, part = cache_dir() / "bookworm.rootfs", archive.with_suffix(".part")
        shutil.rmtree(root, ignore_errors=True)
        done = subprocess.run(
            [debootstrap, "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(root), MIRROR],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            pytest.skip(f"no base image: debootstrap failed: {done.stdout.strip().splitlines()[-1:]}")
        with tarfile.open(part, "w") as tar:
            for entry in sorted(root.iterdir()):
                if entry.name not in ("dev", "proc", "sys"):  # the engine brings its own
                    tar.add(entry, arcname=entry.name)
        part.rename(archive)
        shutil.rmtree(root)
    return archive
