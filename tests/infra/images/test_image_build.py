"""Images: they build from the one Dockerfile, run as launched, and a build that cannot be says why."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from clara_flow.errors import InputError, LauncherUnavailable
from clara_flow.infra.images.build import ImageBuilder
from clara_flow.infra.images.catalog import bundled
from clara_flow.infra.launchers.base import Stop
from clara_flow.infra.launchers.docker import DockerLauncher
from clara_flow.infra.launchers.spec import LaunchSpec

NAME = "register-results"


def test_no_engine(tmp_path: Path) -> None:
    builder = ImageBuilder(base_url=f"unix://{tmp_path}/docker.sock")
    with pytest.raises(LauncherUnavailable, match="no Docker engine answers"):
        builder.build(bundled().get(NAME))


@pytest.mark.docker
def test_unreadable_ca_bundle(docker_engine: str, tmp_path: Path) -> None:
    builder = ImageBuilder(base_url=docker_engine, ca_bundle=tmp_path / "none.pem")
    with pytest.raises(InputError, match=r"CA bundle .*none\.pem cannot be read"):
        builder.build(bundled().get(NAME))


@pytest.mark.docker
class TestBuild:
    @pytest.fixture
    def api(self, docker_engine: str) -> Iterator[docker.APIClient]:
        with contextlib.closing(docker.APIClient(base_url=docker_engine)) as client:
            yield client

    async def run(
        self, base_url: str, reference: str, folder: Path, *command: str, pull_policy: str = "never"
    ) -> list[str]:
        lines: list[str] = []
        spec = LaunchSpec(
            operator="registrar",
            job_id=str(uuid.uuid4()),
            image=reference,
            command=command,
            pull_policy=pull_policy,
            log_path=folder / "log",
        )
        await DockerLauncher(base_url).run(spec, stop=Stop(), on_line=lines.append)
        return lines

    async def test_image_runs_its_operator(
        self, docker_engine: str, operator_images: dict[str, str], tmp_path: Path
    ) -> None:
        lines = await self.run(docker_engine, operator_images[NAME], tmp_path, "--help")
        assert lines[0].startswith("usage:")

    async def test_bundled_image_is_never_pulled(
        self, docker_engine: str, operator_images: dict[str, str], tmp_path: Path
    ) -> None:
        lines = await self.run(docker_engine, operator_images[NAME], tmp_path, "--help", pull_policy="always")
        assert lines[0].startswith("usage:")

    def test_images_are_named_and_unprivileged(self, api: docker.APIClient, operator_images: dict[str, str]) -> None:
        assert operator_images.keys() == bundled().operators.keys()
        for name, reference in operator_images.items():
            assert reference == bundled().get(name).image
            assert api.inspect_image(reference)["Config"]["User"] == "65532:65532"

    def test_images_share_their_packages(self, api: docker.APIClient, operator_images: dict[str, str]) -> None:
        layers = [api.inspect_image(reference)["RootFS"]["Layers"] for reference in operator_images.values()]
        assert {tuple(own[:-1]) for own in layers} == {tuple(layers[0][:-1])}

    def test_building_again_changes_nothing(
        self, image_builder: ImageBuilder, api: docker.APIClient, operator_images: dict[str, str]
    ) -> None:
        steps: list[tuple[int, int]] = []
        before = api.inspect_image(operator_images[NAME])["Id"]
        reference = image_builder.build(
            bundled().get(NAME), tag="again", on_step=lambda step, total, text: steps.append((step, total))
        )
        assert reference == f"clara-flow/{NAME}:again"
        assert api.inspect_image(reference)["Id"] == before
        assert [step for step, _ in steps] == list(range(1, steps[-1][1] + 1))
        api.remove_image(reference)

    def test_base_image_that_is_not_there(self, docker_engine: str) -> None:
        builder = ImageBuilder(base_url=docker_engine, base_image="localhost:1/nobody/base:1")
        with pytest.raises(LauncherUnavailable, match=r"base image localhost:1/nobody/base:1 .*--base-image IMAGE"):
            builder.build(bundled().get(NAME))

    def test_failing_step_shows_its_output(self, image_builder: ImageBuilder) -> None:
        stranger = bundled().get(NAME).model_copy(update={"name": "no-such-operator"})
        with pytest.raises(LauncherUnavailable, match="image of no-such-operator could not be built, at 'RUN"):
            image_builder.build(stranger)
