"""Every way out of the platform by which it could tell of a patient: (where, what was told) of each."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import httpx
import psutil
import sqlalchemy as sa
from platform_fixture import clara_flow
from services.dicom.adapter.adapter_world import AdapterWorld

from clara_flow.records.database import connect

Told = Iterator[tuple[str, bytes]]
# What is kept because it is worked with: an inference request names the patient whose studies are to be fetched.
WORKED_WITH = {"inference_requests": "body"}


def files(adapter: AdapterWorld) -> Told:
    """Every file that is neither an instance, nor an operator's data, nor the database's, nor of Prefect's pages."""
    root, store = adapter.settings.data_dir, adapter.house.store.root
    own = [adapter.places.spool / "instances", root / "postgres", root / "prefect" / "ui"]
    own += [payload / kind for payload in store.glob("*") for kind in ("input", "operators")]
    for path in root.rglob("*"):
        if not any(path.is_relative_to(place) for place in own):
            yield f"name of {path}", str(path.relative_to(root)).encode()
            with suppress(OSError):
                if path.is_file() and not path.is_symlink():
                    yield str(path), path.read_bytes()


def rows(url: sa.URL | str, name: str) -> Told:
    """All tables of a database."""
    engine = connect(sa.make_url(url).render_as_string(hide_password=False), pool_size=1)
    with engine.connect() as connection:
        for table in sa.inspect(connection).get_table_names():
            content = sa.text(f"SELECT (to_jsonb(t) - :worked_with)::text FROM {table} t")  # noqa: S608  a name of ours
            found = connection.execute(content, {"worked_with": WORKED_WITH.get(table, "")}).scalars()
            yield f"{name}, table {table}", "\n".join(found).encode()
    engine.dispose()


def answers(adapter: AdapterWorld) -> Told:
    """Of the gateway."""
    paths = ["/metrics", "/health/status", "/health/ready", "/health/live", "/api/tasks?size=1000", "/openapi.json"]
    paths += [f"/api/config/{kind}" for kind in ("claraaetitle", "sourceaetitle", "destinationaetitle")]
    for path in paths:
        answer = adapter.gateway.get(path)
        yield f"GET {path}", answer.content + repr(answer.headers).encode()


def commands(adapter: AdapterWorld, study: str) -> Told:
    """What they print."""
    for command in (
        "status", "status --json", "queue", "queue --json", "dicom groups list --all -n 200",
        "dicom groups list --all --json", "results list", "results list --json", "dicom aetitle list",
        "dicom source list", "dicom destination list", "doctor", f"dicom explain {study}",
    ):  # fmt: skip
        done = clara_flow(adapter.settings, *command.split())
        yield command, (done.stdout + done.stderr).encode()
    for delivery in json.loads(clara_flow(adapter.settings, "results", "list", "--json").stdout)[:3]:
        done = clara_flow(adapter.settings, "results", "show", delivery["id"])
        yield "results show", (done.stdout + done.stderr).encode()


def prefect(adapter: AdapterWorld) -> Told:
    """Everything of the platform's Prefect server: what its API answers, and all of its tables."""
    with httpx.Client(base_url=f"{adapter.handle.prefect_api_url}/", trust_env=False, timeout=60) as client:
        for kind in ("flows", "flow_runs", "task_runs", "logs", "artifacts", "deployments", "variables"):
            offset, page = 0, [None] * 200
            while len(page) == 200:
                page = client.post(f"{kind}/filter", json={"limit": 200, "offset": offset}).raise_for_status().json()
                offset += len(page)
                yield f"Prefect's {kind}", json.dumps(page, ensure_ascii=False).encode()
    yield from rows(sa.make_url(adapter.handle.database_url).set(database="prefect"), "Prefect")


@dataclass
class Processes:
    """What everybody on the machine can see of the platform's processes: command lines, and their environment."""

    lines: dict[int, set[str]] = field(default_factory=dict)
    looks: dict[int, int] = field(default_factory=dict)

    def look(self, folder: str) -> None:
        """Remember those that know of a folder. A new one is looked at twice: it may begin as a copy of another."""
        for number in psutil.pids():
            if self.looks.get(number, 0) < 2:
                self.looks[number] = self.looks.get(number, 0) + 1
                with suppress(psutil.Error, OSError):
                    process = psutil.Process(number)
                    whole = f"{process.cwd()} {process.environ()} {process.cmdline()}"
                    if folder in whole:
                        self.lines.setdefault(number, set()).add(whole)

    def told(self) -> Told:
        """Of each."""
        for number, lines in self.lines.items():
            yield f"process {number}", "\n".join(sorted(lines)).encode()


@contextmanager
def watched_processes(adapter: AdapterWorld) -> Iterator[Processes]:
    """Looks at them until the end of the block."""
    found, over = Processes(), threading.Event()

    def watch() -> None:
        while not over.is_set():
            found.look(str(adapter.settings.data_dir))
            over.wait(0.1)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()
