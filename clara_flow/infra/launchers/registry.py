"""The launchers that there are, by the name of their runtime."""

from __future__ import annotations

from collections.abc import Callable

from clara_flow.errors import LauncherUnavailable
from clara_flow.infra.launchers.base import Launcher
from clara_flow.settings import Settings


def _process(settings: Settings) -> Launcher:
    from clara_flow.infra.launchers.process import ProcessLauncher

    return ProcessLauncher(settings.data_dir / "operators")


def _docker(settings: Settings) -> Launcher:
    from clara_flow.infra.launchers.docker import DockerLauncher

    return DockerLauncher(settings.docker_base_url)


FACTORIES: dict[str, Callable[[Settings], Launcher]] = {"process": _process, "docker": _docker}


def create_launcher(runtime: str, settings: Settings) -> Launcher:
    """The launcher of that runtime. Raises LauncherUnavailable naming the runtimes when there is none."""
    try:
        factory = FACTORIES[runtime]
    except KeyError:
        raise LauncherUnavailable(
            f"there is no runtime {runtime!r}; there is {', '.join(FACTORIES)} (a new one is added to {__name__})",
            runtime=runtime,
        ) from None
    return factory(settings)
