"""The doctor's findings on this machine, and on machines made ill."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest
from nvml_fixture import FakeNvml, fake_nvml, fake_nvml_here, nvml_library  # noqa: F401
from platform_fixture import clara_flow, free_port

from clara_flow.services import doctor
from clara_flow.services.doctor import examine
from clara_flow.services.findings import Finding, Findings, Level
from clara_flow.settings import Settings, load_settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings of a user whose data folder does not exist yet."""
    return load_settings(
        data_dir=tmp_path / "data",
        prefect_port=free_port(),
        docker_base_url=f"unix://{tmp_path}/no-docker.sock",
        storage_limit_percent=100,
    )


def of_check(check: str, settings: Settings) -> list[Finding]:
    return list(doctor.CHECKS[check](settings))


def test_this_machine_is_fit_and_nothing_is_made(settings: Settings) -> None:
    findings = examine(settings)
    assert [finding for finding in findings if finding.level is Level.PROBLEM] == []
    assert {finding.check.split(" [")[0] for finding in findings} >= {
        "python", "packages", "cores and memory", "gpu", "data folder", "disk", "shared memory", "postgresql",
        "platform", "docker", "model", f"port {settings.prefect_port}",
    }  # fmt: skip
    assert not settings.data_dir.exists()


def test_every_finding_that_is_not_fine_says_what_mends_it(settings: Settings) -> None:
    for finding in examine(settings):
        assert finding.text
        assert finding.level is Level.OK or finding.remedy or finding.check == "model"


def test_a_gpu_that_is_not_well_is_told(settings: Settings, fake_nvml_here: FakeNvml) -> None:  # noqa: F811
    fake_nvml_here.add_gpu()
    failed, slow = fake_nvml_here.add_gpu(rows="1 0"), fake_nvml_here.add_gpu(clocks="0x40")
    there_are, *unwell = of_check("cores and memory", settings)[1:]
    assert (there_are.level, there_are.text.count("Tesla T4")) == (Level.OK, 3)
    assert [(finding.check, finding.level) for finding in unwell] == [("gpu", Level.PROBLEM), ("gpu", Level.NOTE)]
    assert unwell[0].text.startswith(f"{failed} is failed: ")
    assert unwell[1].text.startswith(f"{slow} is degraded: slowed down")


def test_without_docker_the_docker_runtime_is_a_problem(settings: Settings) -> None:
    (note,) = of_check("docker", settings)
    assert note.level is Level.NOTE
    assert f"{settings.docker_base_url}: No such file or directory" in note.text
    assert "`process` works without it" in note.remedy
    (problem,) = of_check("docker", settings.model_copy(update={"runtime": "docker"}))
    assert problem.level is Level.PROBLEM


def test_a_docker_socket_that_does_not_answer_is_given_up(settings: Settings, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead.sock"))
        dead.listen()
        begin = time.monotonic()
        (finding,) = of_check("docker", settings.model_copy(update={"docker_base_url": f"unix://{tmp_path}/dead.sock"}))
        assert time.monotonic() - begin < 2 * doctor.ENGINE_TIMEOUT_S
    assert finding.level is Level.NOTE
    assert "no engine answers" in finding.text


@pytest.mark.docker
def test_a_docker_engine_that_answers(settings: Settings, docker_engine: str) -> None:
    finding = of_check("docker", settings.model_copy(update={"docker_base_url": docker_engine}))[0]
    assert finding.level in {Level.OK, Level.NOTE}
    assert finding.text.startswith("engine ")


def test_a_check_that_hangs_is_given_up(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for_ever = threading.Event()

    def hang(settings: Settings) -> Findings:
        for_ever.wait()
        yield Finding("disk", Level.OK, "at last")

    monkeypatch.setattr(doctor, "TIME_LIMIT_S", 0.2)
    monkeypatch.setattr(doctor, "CHECKS", {"disk": hang})
    (finding,) = examine(settings)
    for_ever.set()
    assert (finding.check, finding.level) == ("disk", Level.PROBLEM)
    assert finding.text == "no answer within 0.2 s"


def test_a_missing_package_names_its_extra(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = tmp_path / "site" / "clara_sick-1.0.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text(
        "Metadata-Version: 2.1\nName: clara-sick\nVersion: 1.0\nRequires-Python: >=3.99\nRequires-Dist: numpy>=1\n"
        "Requires-Dist: no-such-package; extra == 'server'\nRequires-Dist: pydicom>=999; extra == 'operators'\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(doctor, "PACKAGE", "clara-sick")
    server, operators, demo = of_check("packages", settings)
    assert (server.level, server.text) == (Level.PROBLEM, "no-such-package is missing")
    assert server.remedy == "pip install 'clara-sick[server]'"
    assert operators.level is Level.PROBLEM
    assert operators.text.endswith("is not >=999")
    assert demo.level is Level.OK
    with_docker = of_check("packages", settings.model_copy(update={"runtime": "docker"}))
    assert with_docker[1].level is Level.NOTE
    (python,) = of_check("python", settings)
    assert (python.level, python.remedy) == (Level.PROBLEM, "Install Python 3.11 or 3.12.")


def test_a_data_folder_that_others_can_enter(settings: Settings) -> None:
    settings.data_dir.mkdir(mode=0o755)
    levels = {finding.text: finding for finding in of_check("data folder", settings)}
    (open_to_others,) = [finding for text, finding in levels.items() if "other accounts" in text]
    assert open_to_others.remedy == f"chmod 700 {settings.data_dir}"
    settings.data_dir.chmod(0o700)
    assert not [f for f in of_check("data folder", settings) if "other accounts" in f.text]


def test_a_disk_above_the_limit_is_a_problem(settings: Settings) -> None:
    findings = of_check("data folder", settings.model_copy(update={"storage_limit_percent": 1}))
    (disk,) = [finding for finding in findings if finding.check == "disk"]
    assert disk.level is Level.PROBLEM
    assert "above 1 % jobs are refused" in disk.text


def test_a_listener_on_all_networks_is_noted(settings: Settings) -> None:
    findings = of_check("platform", settings.model_copy(update={"host": "0.0.0.0"}))  # noqa: S104
    assert not [finding for finding in findings if finding.level is Level.PROBLEM]
    # 0.0.0.0 is reached on 127.0.0.1, too; what matters is where the server listens.
    (network,) = [finding for finding in findings if finding.check == "network"]
    assert "asks for no password" in network.text


def test_a_folder_without_postgresql_is_named(settings: Settings, tmp_path: Path) -> None:
    (finding,) = [
        finding
        for finding in examine(settings.model_copy(update={"postgres_bin_dir": tmp_path}))
        if finding.check == "postgresql"
    ]
    assert finding.level is Level.PROBLEM
    assert str(tmp_path) in finding.text


def test_the_command_tells_it_in_words_and_in_json(settings: Settings) -> None:
    socket_variable = {"CLARA_FLOW_DOCKER_BASE_URL": str(settings.docker_base_url)}
    words = clara_flow(settings, "doctor", CLARA_FLOW_STORAGE_LIMIT_PERCENT="100", **socket_variable)
    assert words.returncode == 0, words.stdout
    assert words.stdout.startswith("ok       python ")
    assert "note     docker" in words.stdout
    ill = clara_flow(settings, "doctor", "--json", CLARA_FLOW_RUNTIME="docker", **socket_variable)
    assert ill.returncode == 1
    assert '"fit": false' in ill.stdout
    assert not settings.data_dir.exists()
