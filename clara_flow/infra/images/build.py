"""Build the images of bundled operators with the Docker engine's own builder, all from one Dockerfile."""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections import deque
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import requests
from docker.errors import APIError

from clara_flow.errors import InputError, LauncherUnavailable
from clara_flow.infra.images.catalog import IMAGE_NAMESPACE, OPERATORS_DIR, BundledOperator
from clara_flow.infra.launchers.docker import connect
from clara_flow.infra.launchers.log import printable

DEFAULT_BASE_IMAGE = "python:3.11-slim"
DOCKERFILE = "clara_flow/operators/Dockerfile"
REQUIREMENTS = "locks/operators.txt"
PACKAGE_DIR = OPERATORS_DIR.parent
# Where the lock file of the operators' packages is: in a wheel, and in a work tree.
LOCK_FILES = (OPERATORS_DIR / "requirements.txt", PACKAGE_DIR.parent / REQUIREMENTS)
PASSED_ON = ("PIP_INDEX_URL", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
STEP = re.compile(r"^Step (\d+)/(\d+) : (.*)")
SHOWN_LINES = 15

Progress = Callable[[int, int, str], None]


class ImageBuilder:
    """Builds operators' images. Building again what has not changed takes the engine's cached layers.

    base_url    the engine, as in DockerLauncher.
    base_image  image with Python 3.11 or 3.12 and venv.
    ca_bundle   PEM file with the certificates of a proxy that stands before the package index; not kept in the image.
    network     network of the build's containers ("host"); unset: the engine's default.

    PIP_INDEX_URL and the proxy variables of this process's environment are passed on.
    """

    def __init__(
        self,
        *,
        base_url: str | None = None,
        base_image: str = DEFAULT_BASE_IMAGE,
        ca_bundle: Path | None = None,
        network: str | None = None,
    ) -> None:
        self.base_url = base_url
        self.base_image = base_image
        self.ca_bundle = ca_bundle
        self.network = network

    def build(self, operator: BundledOperator, *, tag: str | None = None, on_step: Progress | None = None) -> str:
        """Build one operator's image and return its reference, `clara-flow/NAME:VERSION` or with `tag` as version.

        on_step     gets step number, number of steps and the step's Dockerfile line.

        Raises LauncherUnavailable when no engine answers, the base image cannot be had or a step fails, InputError when
        the CA bundle cannot be read.
        """
        reference = f"{IMAGE_NAMESPACE}/{operator.name}:{tag or operator.version}"
        arguments = {name: value for name in PASSED_ON if (value := os.environ.get(name))}
        api = connect(self.base_url)
        step, lines = "", deque[str](maxlen=SHOWN_LINES)
        try:
            for event in api.build(
                fileobj=io.BytesIO(self._context),
                custom_context=True,
                dockerfile=DOCKERFILE,
                tag=reference,
                buildargs={**arguments, "OPERATOR": operator.name, "BASE_IMAGE": self.base_image},
                network_mode=self.network,
                rm=True,
                forcerm=True,
                decode=True,
                timeout=None,
            ):
                if "error" in event:
                    raise self._failure(operator, step, event["error"], lines)
                text = printable(event.get("stream", "").strip().encode())
                if match := STEP.match(text):
                    step = match[3]
                    if on_step:
                        on_step(int(match[1]), int(match[2]), step)
                elif text:
                    lines.append(text)
        except (APIError, requests.exceptions.RequestException) as error:
            raise self._failure(operator, step, str(error), lines) from None
        finally:
            api.close()
        return reference

    @cached_property
    def _context(self) -> bytes:
        """What the Dockerfile copies, as a tar archive, without owners and times, so that layers are found again."""
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for path in sorted(OPERATORS_DIR.rglob("*")):
                if path.is_file() and "__pycache__" not in path.parts:
                    _add(tar, path, f"clara_flow/{path.relative_to(PACKAGE_DIR)}")
            _add(tar, PACKAGE_DIR / "__init__.py", "clara_flow/__init__.py")
            _add(tar, next(path for path in LOCK_FILES if path.exists()), REQUIREMENTS)
            if self.ca_bundle is not None:
                try:
                    _add(tar, self.ca_bundle, "ca-bundle.crt")
                except OSError as error:
                    raise InputError(f"the CA bundle {self.ca_bundle} cannot be read: {error.strerror}") from None
        return archive.getvalue()

    def _failure(self, operator: BundledOperator, step: str, reason: str, lines: deque[str]) -> LauncherUnavailable:
        if step.startswith("FROM"):
            text = (
                f"the base image {self.base_image} cannot be used: {reason.strip()}. Pull or load it, or name one that "
                "is on this machine, with Python 3.11 or 3.12 and venv: --base-image IMAGE"
            )
        else:
            output = "".join(f"\n  {line}" for line in lines)
            text = f"the image of {operator.name} could not be built, at {step!r}: {reason.strip()}{output}"
        return LauncherUnavailable(text, operator=operator.name, base_image=self.base_image, step=step)


def _add(tar: tarfile.TarFile, path: Path, name: str) -> None:
    content = path.read_bytes()
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), 0o644
    tar.addfile(entry, io.BytesIO(content))
