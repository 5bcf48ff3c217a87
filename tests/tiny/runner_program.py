"""A runner program whose jobs do what their facts say. Jobs leave files in the folder RUNNER_FOLDER."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

from clara_flow.infra.pool import zygote

FOLDER = Path(os.environ["RUNNER_FOLDER"])
LEAKED: list[bytes] = []


class TinyHandler:
    """`facts["do"]` names the method that is the job."""

    async def open(self) -> None:
        if (FOLDER / "cannot-open").exists():
            raise RuntimeError("there is no database")

    async def run(self, job_id: UUID, facts: dict[str, Any], stop: Callable[[Callable[[str], None]], None]) -> None:
        await getattr(self, facts["do"])(FOLDER / str(job_id), facts, stop)

    async def abandon(self) -> None:
        (FOLDER / "abandoned").touch()

    async def close(self) -> None:
        (FOLDER / f"closed-{os.getpid()}").touch()

    async def tell(self, file: Path, facts: dict[str, Any], stop: object) -> None:
        """Write what this process is like."""
        open_files = {path.name: str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}
        facts = {
            "facts": facts,
            "pid": os.getpid(),
            "session": os.getsid(0),
            "random": random.random(),  # noqa: S311
            "sockets": sum(target.startswith("socket:") for target in open_files.values()),
            "stdin": open_files["0"],
            "stdout": open_files["1"],
            "sigint_ignored": signal.getsignal(signal.SIGINT) is signal.SIG_IGN,
            "threads": sorted(thread.name for thread in threading.enumerate()),
        }
        put(file, json.dumps(facts))

    async def wait(self, file: Path, facts: dict[str, Any], stop: Callable[[Callable[[str], None]], None]) -> None:
        """Until it is asked to stop."""
        reasons: asyncio.Queue[str] = asyncio.Queue()
        stop(reasons.put_nowait)
        put(file, str(os.getpid()))
        put(file.with_suffix(".stopped"), await reasons.get())

    async def hang(self, file: Path, facts: dict[str, Any], stop: object) -> None:
        """Block the event loop for ever, with a child in the process group."""
        child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])  # noqa: ASYNC220
        put(file, str(child.pid))
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Event().wait()

    async def compute(self, file: Path, facts: dict[str, Any], stop: object) -> None:
        """Some ten milliseconds of work."""
        put(file, str(sum(range(10**6))))

    async def fail(self, file: Path, facts: dict[str, Any], stop: object) -> None:
        raise ValueError("no such luck")

    async def leave_suddenly(self, file: Path, facts: dict[str, Any], stop: object) -> None:
        os._exit(3)

    async def leak(self, file: Path, facts: dict[str, Any], stop: Callable[[Callable[[str], None]], None]) -> None:
        """Keep some MiB; with `wait` also the job goes on."""
        LEAKED.append(b"x" * facts["mib"] * 2**20)
        put(file, "")
        if facts.get("wait"):
            await asyncio.Event().wait()


def put(file: Path, text: str) -> None:
    """Whole or not at all."""
    unnamed = file.with_suffix(".new")
    unnamed.write_text(text)
    unnamed.rename(file)


if __name__ == "__main__":
    zygote.main(TinyHandler, abandon_s=float(os.environ.get("ABANDON_S", "5")))
