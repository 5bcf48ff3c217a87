"""A stand-in for NVIDIA's driver library (tests/nvml/nvml.c): GPUs that a test makes, breaks and takes away.

The real pynvml loads it. A conftest that needs it imports the fixtures: `from nvml_fixture import fake_nvml  # noqa`;
`fake_nvml.environment` is for other processes, `fake_nvml_here` is for the code that runs in the test's own process.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import uuid as uuids
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pynvml
import pytest

SOURCE = Path(__file__).with_name("nvml") / "nvml.c"
LIBRARY_NAME = "libnvidia-ml.so.1"
XID, DOUBLE_BIT = pynvml.nvmlEventTypeXidCriticalError, pynvml.nvmlEventTypeDoubleBitEccError
WHOLE_CARD = -1
MIN_FACTS: dict[str, str] = {"memory": "16000 0"}


@dataclass
class Part:
    """A card or a MIG instance. `facts` by key, one line for each value."""

    uuid: str
    instance: int | None = None
    facts: dict[str, str | list[str]] = field(default_factory=dict)
    instances: list[Part] = field(default_factory=list)

    def lines(self) -> list[str]:
        head = f"gpu {self.uuid}" if self.instance is None else f"mig {self.uuid} {self.instance}"
        values = ((key, value if isinstance(value, list) else [value]) for key, value in self.facts.items())
        own = [head, *(f"{key} {line}" for key, lines in values for line in lines)]
        return own + [line for instance in self.instances for line in instance.lines()]


class FakeNvml:
    """The driver and its GPUs. Every change is there for the next NVML call, also of other processes."""

    def __init__(self, library: Path, file: Path) -> None:
        self.library, self.file = library, file
        self._driver = pynvml.NVML_SUCCESS
        self._cards: dict[str, Part] = {}
        self._events: list[str] = []
        self._held = False
        self._write()

    @property
    def environment(self) -> dict[str, str]:
        """What a process must have in its environment to see these GPUs."""
        path = os.pathsep.join(filter(None, [str(self.library.parent), os.environ.get("LD_LIBRARY_PATH")]))
        return {"LD_LIBRARY_PATH": path, "NVML_STAND_IN": str(self.file)}

    def add_gpu(
        self, uuid: str | None = None, *, memory_mib: int = 16_000, name: str = "Tesla T4", **facts: str
    ) -> str:
        """A healthy card at the end of the list; `facts` are lines of nvml.c's file. Returns its UUID."""
        uuid = uuid or f"GPU-{uuids.uuid4()}"
        healthy = {
            "name": name,
            "memory": f"{memory_mib} 0 400",
            "pci": f"0 {len(self._cards) + 1} 0",
            "numa": "0",
            "temperature": "40",
            "clocks": "0",
            "ecc": "0 0",
            "rows": "0 0",
            "mig_mode": "0",
            "events": str(XID | DOUBLE_BIT),
            "process": "none",
            "graphics": "none",
        }
        self._cards[uuid] = Part(uuid, facts=healthy | facts)
        self._write()
        return uuid

    def add_bare_gpu(self, uuid: str) -> None:
        """A card of which the driver tells nothing but UUID and memory."""
        self._cards[uuid] = Part(uuid, facts=dict(MIN_FACTS))
        self._write()

    def add_instance(self, card: str, *, instance: int, memory_mib: int = 4_000, uuid: str | None = None) -> str:
        """A MIG instance, which puts its card into MIG mode. Returns its UUID."""
        uuid = uuid or f"MIG-{uuids.uuid4()}"
        facts: dict[str, str | list[str]] = {"memory": f"{memory_mib} 0 0", "process": "none", "name": "MIG 1g.5gb"}
        self._cards[card].instances.append(Part(uuid, instance, facts))
        self.set(card, mig_mode="1")
        return uuid

    def remove(self, uuid: str) -> None:
        """Take a card away."""
        del self._cards[uuid]
        self._write()

    def set(self, uuid: str, **facts: str | list[str] | None) -> None:
        """Change facts of a card or instance; None: the driver does not support it."""
        part = self._part(uuid)
        part.facts |= {key: value for key, value in facts.items() if value is not None}
        for key in [key for key, value in facts.items() if value is None]:
            part.facts.pop(key, None)
        self._write()

    def hold(self, uuid: str, processes: dict[int, int], *, kind: str = "process", memory_mib: int = 16_000) -> None:
        """Let processes (id -> MiB, -1: the driver does not say) hold memory of a device."""
        used = sum(mib for mib in processes.values() if mib > 0)
        lines = [f"{pid} {mib}" for pid, mib in processes.items()] or "none"
        self.set(uuid, **{kind: lines, "memory": f"{memory_mib} {used} 400"})

    def link(self, uuid: str, *others: str) -> None:
        """NVLinks of a card: UUIDs, "switch" or "down"."""
        places = [other if other in {"switch", "down"} else str(self._cards[other].facts["pci"]) for other in others]
        self.set(uuid, link=places)

    def fail(self, uuid: str, code: int, function: str = "*") -> None:
        """Let a function (all of them) answer with an NVML error code about this device."""
        self.set(uuid, error=[f"{function} {code}"])

    def lose(self, uuid: str) -> None:
        """It does not answer on its bus any more."""
        self.fail(uuid, pynvml.NVML_ERROR_GPU_IS_LOST)

    def heal(self, uuid: str) -> None:
        """It answers again."""
        self.set(uuid, error=None)

    def xid(self, uuid: str, number: int, *, instance: int = WHOLE_CARD) -> None:
        """Report a Xid of a card, or of one of its MIG instances."""
        self._report(uuid, XID, number, instance)

    def double_bit_error(self, uuid: str) -> None:
        """Report an uncorrected memory error."""
        self._report(uuid, DOUBLE_BIT, 0, WHOLE_CARD)

    def driver(self, code: int) -> None:
        """What the driver answers to nvmlInit."""
        self._driver = code
        self._write()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Several changes that are seen together."""
        self._held = True
        yield
        self._held = False
        self._write()

    def _report(self, uuid: str, kind: int, data: int, instance: int) -> None:
        self._events.append(f"event {len(self._events) + 1} {uuid} {kind} {data} {instance}")
        self._write()

    def _part(self, uuid: str) -> Part:
        instances = {part.uuid: part for card in self._cards.values() for part in card.instances}
        return (self._cards | instances)[uuid]

    def _write(self) -> None:
        if self._held:
            return
        lines = [f"driver {self._driver}", *(line for card in self._cards.values() for line in card.lines())]
        new = self.file.with_suffix(".new")
        new.write_text("\n".join([*lines, *self._events, ""]))
        new.replace(self.file)


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in, compiled once."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler: the stand-in for NVIDIA's driver library cannot be made (apt-get install gcc)")
    library = tmp_path_factory.mktemp("nvml") / LIBRARY_NAME
    subprocess.run(
        [compiler, "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-fPIC", "-shared", "-o", library, SOURCE],
        check=True,
    )
    return library


@pytest.fixture
def fake_nvml(nvml_library: Path, tmp_path: Path) -> FakeNvml:
    """A driver without a GPU; add some."""
    return FakeNvml(nvml_library, tmp_path / "gpus.txt")


@pytest.fixture
def fake_nvml_here(fake_nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    """The same for this very process: what pynvml loaded before is put back afterwards."""
    monkeypatch.setenv("NVML_STAND_IN", str(fake_nvml.file))
    monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(fake_nvml.library)))
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    return fake_nvml
