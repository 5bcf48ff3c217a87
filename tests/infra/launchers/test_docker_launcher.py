"""What only the Docker launcher has to show: hardening, images, devices, and an engine that is not there."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import docker
import pytest

from clara_flow.errors import LauncherUnavailable
from clara_flow.infra.launchers.base import Stop
from clara_flow.infra.launchers.docker import OPERATOR_UID, DockerLauncher, container_settings
from clara_flow.infra.launchers.registry import create_launcher
from clara_flow.infra.launchers.spec import LaunchSpec, Mount, RegistryAuth, ResourceRequest
from clara_flow.settings import Settings


def make_spec(tmp_path: Path, **changes: object) -> LaunchSpec:
    values: dict[str, object] = {
        "operator": "reader",
        "job_id": str(uuid.uuid4()),
        "image": "example.org/reader:1",
        "log_path": tmp_path / "reader.log",
    }
    return LaunchSpec(**{**values, **changes})  # type: ignore[arg-type]


async def run(launcher: DockerLauncher, spec: LaunchSpec) -> list[str]:
    lines: list[str] = []
    await launcher.run(spec, stop=Stop(), on_line=lines.append)
    return lines


def test_leased_gpus_and_no_others_are_asked_for(tmp_path: Path) -> None:
    container, host = container_settings(make_spec(tmp_path, gpu_devices=("GPU-a", "GPU-b")))
    (request,) = host["device_requests"]
    assert request.device_ids == ["GPU-a", "GPU-b"]
    assert request.capabilities == [["gpu"]]
    assert container["environment"]["NVIDIA_VISIBLE_DEVICES"] == "GPU-a,GPU-b"


def test_network_only_where_the_spec_says_so(tmp_path: Path) -> None:
    _, without = container_settings(make_spec(tmp_path))
    _, with_network = container_settings(make_spec(tmp_path, network=True))
    assert without["network_mode"] == "none"
    assert with_network["network_mode"] is None


async def test_no_engine(tmp_path: Path) -> None:
    launcher = DockerLauncher(f"unix://{tmp_path}/docker.sock")
    with pytest.raises(
        LauncherUnavailable,
        match=r"no Docker engine answers at unix://.*: No such file or directory.*--runtime process",
    ):
        await launcher.check()
    with pytest.raises(LauncherUnavailable, match="no Docker engine answers"):
        await run(launcher, make_spec(tmp_path))


def test_unknown_runtime_names_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(LauncherUnavailable, match="no runtime 'kubernetes'; there is process, docker"):
        create_launcher("kubernetes", Settings(data_dir=tmp_path))


@pytest.mark.parametrize("runtime", ["process", "docker"])
def test_known_runtimes(tmp_path: Path, runtime: str) -> None:
    assert create_launcher(runtime, Settings(data_dir=tmp_path)).runtime == runtime


@pytest.mark.docker
class TestWithEngine:
    @pytest.fixture
    def launcher(self, docker_engine: str) -> DockerLauncher:
        return DockerLauncher(docker_engine)

    async def test_hardening(self, launcher: DockerLauncher, base_image: str, tmp_path: Path) -> None:
        code = """
import os, pathlib
status = dict(line.split(":\\t") for line in pathlib.Path("/proc/self/status").read_text().splitlines())
limits = pathlib.Path("/proc/self/limits").read_text().splitlines()
print(os.getuid())
print(int(status["CapBnd"], 16), int(status["CapEff"], 16), status["NoNewPrivs"], status["Seccomp"])
print(*[line.split()[4] for line in limits if line.startswith("Max core")])
print(*[line.split(":")[0].strip() for line in pathlib.Path("/proc/net/dev").read_text().splitlines()[2:]])
print(*[line.split()[3].split(",")[0] for line in open("/proc/mounts") if line.split()[1] in ("/", "/input")])
"""
        mount = Mount(source=tmp_path, target="/input")
        spec = make_spec(tmp_path, image=base_image, command=("python3", "-c", code), mounts=(mount,))
        uid = OPERATOR_UID if os.getuid() == 0 else os.getuid()
        assert await run(launcher, spec) == [str(uid), "0 0 1 2", "0", "lo", "ro ro"]

    async def test_limits_reach_the_engine(
        self, launcher: DockerLauncher, base_image: str, docker_engine: str, tmp_path: Path
    ) -> None:
        request = ResourceRequest(cpu=2, memory_mib=100)
        spec = make_spec(tmp_path, image=base_image, command=("sh", "-c", "echo up; sleep 60"), request=request)
        stop, seen = Stop(), []

        def look(line: str) -> None:
            (container,) = api.containers(filters={"label": f"clara-flow.job={spec.job_id}"})
            seen.append(api.inspect_container(container["Id"])["HostConfig"])
            stop.set()

        api = docker.APIClient(base_url=docker_engine)
        with pytest.raises(Exception, match="was cancelled"):
            await launcher.run(spec, stop=stop, on_line=look)
        api.close()
        (host,) = seen
        assert (host["Memory"], host["MemorySwap"], host["NanoCpus"]) == (100 * 2**20, 100 * 2**20, 2 * 10**9)
        assert host["PidsLimit"] == 1024
        assert host["LogConfig"]["Type"] == "none"

    @pytest.mark.parametrize(
        ("image", "policy", "message"),
        [
            ("clara-flow/dicom-reader:0.0", "if-not-present", "Build it: clara-flow operators build dicom-reader"),
            ("clara-flow/dicom-reader:0.0", "always", "Build it: clara-flow operators build dicom-reader"),
            ("localhost:1/nobody/reader:7", "never", r"not on this machine .pull policy never.*Load it"),
            ("localhost:1/nobody/reader:7", "if-not-present", "localhost:1/nobody/reader:7.*Check its name and tag"),
            ("localhost:1/nobody/reader:7", "always", "pull policy always"),
        ],
    )
    async def test_image_that_does_not_exist(
        self, launcher: DockerLauncher, tmp_path: Path, image: str, policy: str, message: str
    ) -> None:
        auth = RegistryAuth(username="me", password="secret-word")  # noqa: S106 (looked for below)
        spec = make_spec(tmp_path, image=image, pull_policy=policy, registry_auth=auth)
        with pytest.raises(LauncherUnavailable, match=message) as caught:
            await run(launcher, spec)
        assert "secret-word" not in str(caught.value)

    async def test_mount_that_does_not_exist(self, launcher: DockerLauncher, base_image: str, tmp_path: Path) -> None:
        spec = make_spec(tmp_path, image=base_image, mounts=(Mount(source=tmp_path / "nowhere", target="/input"),))
        with pytest.raises(LauncherUnavailable, match="could not be launched from"):
            await run(launcher, spec)

    async def test_connections_are_closed(self, launcher: DockerLauncher, base_image: str, tmp_path: Path) -> None:
        spec = make_spec(tmp_path, image=base_image, command=("true",))
        counts = []
        for _ in range(10):
            await run(launcher, spec)
            counts.append(sum(1 for _ in Path("/proc/self/fd").iterdir()))
        assert counts[-1] <= counts[-3]  # the SDK's pool has filled, and that is all
