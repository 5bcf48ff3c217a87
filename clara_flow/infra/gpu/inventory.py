"""The GPUs of this machine: as they are now, and told when something changes that matters to scheduling."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pynvml

from clara_flow.infra.gpu import nvml
from clara_flow.infra.gpu.model import Gpu, Health

log = logging.getLogger(__name__)

KERNEL_GPUS = Path("/proc/driver/nvidia/gpus")  # what the kernel module drives now; NVML keeps what was there at first
FOREIGN_STEP_MIB = 256
SLICE_S = 0.25  # a wait for events cannot be interrupted


def list_gpus() -> tuple[Gpu, ...]:
    """All devices in the driver's order, MIG instances behind their card, failed ones too. None without a driver."""
    with nvml.opened() as there:
        return nvml.read_gpus(nvml.Memory()) if there else ()


class GpuWatch:
    """Keeps an eye on this machine's GPUs in a thread of its own, from `start` to `stop`.

    It reads them every `poll_s` seconds and whenever the driver reports a Xid or a double-bit memory error, and calls
    `on_change` (in its thread) after a device appeared, vanished, failed, healed or was rewired, or when foreign memory
    moved by more than 256 MiB. When `on_change` raises, it is called again at the next reading.

    A Xid that fails a GPU is kept until the GPU is gone from the driver's list or the watch ends; what lasts of it (a
    lost GPU, a pending repair, uncorrected errors) is read from the driver itself.

    is_ours     tells by process id whose memory is not foreign.
    """

    def __init__(
        self,
        on_change: Callable[[], object],
        *,
        poll_s: float = 5.0,
        is_ours: Callable[[int], bool] = nvml.is_operator,
    ) -> None:
        self.gpus: tuple[Gpu, ...] = ()
        self._on_change, self._poll_s, self._is_ours = on_change, poll_s, is_ours
        self._told: tuple[Gpu, ...] = ()
        self._memory = nvml.Memory()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gpu-watch", daemon=True)

    def start(self) -> None:
        """Begin. From here on `gpus` holds the latest reading; the first one is no change."""
        with nvml.opened() as there:
            self.gpus = self._told = nvml.read_gpus(self._memory, self._is_ours) if there else ()
        self._thread.start()

    def stop(self) -> None:
        """End; no call of `on_change` is under way afterwards."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            with nvml.opened() as there:
                if there:
                    self._watch_cards()
                else:
                    self._look(())
                    self._stopping.wait(self._poll_s)

    def _watch_cards(self) -> None:
        """Until the watch ends or the cards are others: NVML shows and reports new ones only when it is opened anew."""
        driven = _driven()
        with nvml.Events() as events:
            while not self._stopping.is_set() and _driven() == driven:
                gpus = nvml.read_gpus(self._memory, self._is_ours)
                before = _cards(self.gpus)
                self._look(gpus)
                if not gpus:
                    self._stopping.wait(self._poll_s)
                if not gpus or _cards(gpus) != before:
                    return
                self._wait_for_faults(events)

    def _wait_for_faults(self, events: nvml.Events) -> None:
        """Return after `poll_s`, or as soon as a fault was noted."""
        until = time.monotonic() + self._poll_s
        while not self._stopping.is_set() and (left_s := until - time.monotonic()) > 0:
            try:
                fault = events.wait(min(SLICE_S, left_s)) if events.are_reported else None
            except pynvml.NVMLError:  # a card is lost
                self._stopping.wait(min(SLICE_S, left_s))
                return
            if fault is not None and fault.verdict[0] is not Health.OK:  # else an application's own error
                self._memory.note(fault)
                return
            if not events.are_reported:
                self._stopping.wait(left_s)

    def _look(self, gpus: tuple[Gpu, ...]) -> None:
        self.gpus = gpus
        if not _matters(self._told, gpus):
            return
        for gpu in gpus:
            if gpu.health is not Health.OK and gpu not in self._told:
                log.warning("GPU %s (%s) is %s: %s", gpu.uuid, gpu.name, gpu.health, gpu.reason)
        present = {gpu.uuid for gpu in gpus}
        for gpu in self._told:
            if gpu.uuid not in present:
                log.warning("GPU %s (%s) is gone", gpu.uuid, gpu.name)
        try:
            self._on_change()
        except Exception:
            log.exception("a change of the GPUs could not be told; it is tried again")
        else:
            self._told = gpus


def _driven() -> frozenset[str]:
    """PCI addresses of the cards that the kernel module drives."""
    try:
        return frozenset(entry.name for entry in KERNEL_GPUS.iterdir())
    except OSError:
        return frozenset()


def _cards(gpus: Sequence[Gpu]) -> set[str]:
    return {gpu.uuid for gpu in gpus if gpu.card is None}


def _matters(before: Sequence[Gpu], after: Sequence[Gpu]) -> bool:
    """Whether the schedule must know of the difference."""

    def known(gpus: Sequence[Gpu]) -> list[tuple[object, ...]]:
        return [(gpu.uuid, gpu.is_usable, gpu.memory_mib, gpu.reserved_mib, gpu.links, gpu.numa) for gpu in gpus]

    return known(before) != known(after) or any(
        abs(old.foreign_mib - new.foreign_mib) > FOREIGN_STEP_MIB for old, new in zip(before, after, strict=True)
    )
