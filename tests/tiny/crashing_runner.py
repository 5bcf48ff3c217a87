"""A runner that dies of every job before it begins it."""

from __future__ import annotations

import os
from typing import Any

from clara_flow.infra.pool import zygote


class Crashing:
    """What a warm runner does."""

    async def open(self) -> None:
        """Nothing to open."""

    async def close(self) -> None:
        """Nothing to close."""

    async def run(self, job_id: Any, facts: Any, stop: Any) -> None:
        """As a library that is not there, or a segmentation fault."""
        del job_id, facts, stop
        os._exit(11)

    async def abandon(self) -> None:
        """Nothing runs for long."""


if __name__ == "__main__":
    zygote.main(Crashing)
