"""Reading GPUs through NVML (`pynvml`, NVIDIA's own bindings). What the driver does not support stays unknown."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import pynvml

from clara_flow.infra.gpu import health
from clara_flow.infra.gpu.model import Gpu, Health

MIB = 2**20
UNKNOWN_NAME = "unknown GPU"
WHOLE_CARD = 0xFFFFFFFF  # GPU instance id of an event that is not of one MIG instance
GONE = {
    pynvml.NVML_ERROR_GPU_IS_LOST: f"it is lost: it does not answer on its bus; {health.RESTART}",
    pynvml.NVML_ERROR_RESET_REQUIRED: f"it waits for a reset; {health.REMEDY}",
    pynvml.NVML_ERROR_INSUFFICIENT_POWER: "its power cables are not connected",
    pynvml.NVML_ERROR_IRQ_ISSUE: f"its interrupts do not reach the driver; {health.RESTART}",
}
SLOWDOWNS = {  # what is neither idle, nor set by somebody, nor the everyday power cap
    pynvml.nvmlClocksThrottleReasonHwSlowdown: "hardware slowdown",
    pynvml.nvmlClocksThrottleReasonSwThermalSlowdown: "too hot (driver)",
    pynvml.nvmlClocksThrottleReasonHwThermalSlowdown: "too hot (hardware)",
    pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown: "power brake",
}

Verdict = tuple[Health, str]
Place = tuple[str, int | None]  # UUID of a card, GPU instance id (None: all of it)


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that NVML reported as it happened."""

    place: Place
    verdict: Verdict


@dataclass(slots=True)
class Memory:
    """What one reading must know of earlier ones: a GPU that is lost does not tell its UUID any more."""

    cards: dict[int, tuple[Gpu, ...]] = field(default_factory=dict)  # by index: the card, then its MIG instances
    faults: dict[Place, list[Verdict]] = field(default_factory=dict)

    def note(self, fault: Fault) -> None:
        """Keep a fault; it lasts until its card is gone from the driver's list."""
        verdicts = self.faults.setdefault(fault.place, [])
        if fault.verdict not in verdicts:
            verdicts.append(fault.verdict)


@contextmanager
def opened() -> Iterator[bool]:
    """NVML for use inside; False where there is no driver, or none that works."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield False
        return
    try:
        yield True
    finally:
        pynvml.nvmlShutdown()


def is_operator(pid: int) -> bool:
    """Whether a process is an operator of ours, in a container or not: by a variable that every operator has.

    Of a process that this account may not look into, or that has ended, the answer is no.
    """
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    return any(entry.startswith(b"CLARA_IO_MANIFEST=") for entry in environment.split(b"\0"))


def read_gpus(memory: Memory, is_ours: Callable[[int], bool] = is_operator) -> tuple[Gpu, ...]:
    """All devices in the driver's order, MIG instances behind their card. NVML must be opened.

    A card that does not answer is listed as failed, by the UUID that `memory` (brought up to date here) has of it.
    """
    cards: dict[int, tuple[Gpu, ...]] = {}
    wires: dict[str, _Wires] = {}
    for index in range(_ask(pynvml.nvmlDeviceGetCount, default=0)):
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            cards[index] = _read_card(handle, index, memory.faults, is_ours)
            wires[cards[index][0].uuid] = _read_wires(handle)
        except pynvml.NVMLError_NoPermission:  # a container's cgroup keeps it from us: it is somebody else's
            continue
        except pynvml.NVMLError as error:
            cards[index] = _silent(index, memory.cards.get(index, ()), error)
    memory.cards = cards
    present = {devices[0].uuid for devices in cards.values()}
    memory.faults = {place: found for place, found in memory.faults.items() if place[0] in present}
    neighbours = _neighbours({devices[0].uuid: devices[0].pci for devices in cards.values()}, wires)
    return tuple(replace(gpu, links=neighbours.get(gpu.uuid, ())) for devices in cards.values() for gpu in devices)


class Events:
    """Xid errors and double-bit memory errors as they happen, of all cards that report them. NVML must be opened."""

    WANTED = pynvml.nvmlEventTypeXidCriticalError | pynvml.nvmlEventTypeDoubleBitEccError

    def __init__(self) -> None:
        self._set: Any = None
        self._uuids: dict[int | None, str] = {}  # by handle: a card that fell off its bus does not tell it any more

    def __enter__(self) -> Events:
        try:
            self._set = pynvml.nvmlEventSetCreate()
        except pynvml.NVMLError:  # nothing will be reported
            return self
        for index in range(_ask(pynvml.nvmlDeviceGetCount, default=0)):
            try:
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                if wanted := self.WANTED & pynvml.nvmlDeviceGetSupportedEventTypes(handle):
                    pynvml.nvmlDeviceRegisterEvents(handle, wanted, self._set)
                    self._uuids[_number(handle)] = str(pynvml.nvmlDeviceGetUUID(handle))
            except pynvml.NVMLError:  # lost, or it reports nothing
                continue
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._set is not None:
            _ask(pynvml.nvmlEventSetFree, self._set, default=None)

    @property
    def are_reported(self) -> bool:
        """Whether any card reports something; where none does, `wait` would fail at once."""
        return bool(self._uuids)

    def wait(self, timeout_s: float) -> Fault | None:
        """The next fault; None after `timeout_s`. Raises NVMLError when a GPU is lost meanwhile."""
        try:
            event = pynvml.nvmlEventSetWait_v2(self._set, int(timeout_s * 1000))
        except pynvml.NVMLError_Timeout:
            return None
        number = int(event.eventData)
        instance = None if event.gpuInstanceId == WHOLE_CARD else int(event.gpuInstanceId)
        if event.eventType == pynvml.nvmlEventTypeDoubleBitEccError:
            number = 48
        return Fault((self._uuids[_number(event.device)], instance), health.of_xid(number))


def _number(handle: Any) -> int | None:
    return ctypes.cast(handle, ctypes.c_void_p).value


def _ask(call: Callable[..., Any], *arguments: Any, default: Any) -> Any:
    """The answer, or `default` where the driver has none. Raises NVMLError only when the GPU is gone."""
    try:
        return call(*arguments)
    except pynvml.NVMLError as error:
        if error.value in GONE:
            raise
        return default


def _read_card(
    handle: Any, index: int, faults: Mapping[Place, Sequence[Verdict]], is_ours: Callable[[int], bool]
) -> tuple[Gpu, ...]:
    """The card, then its MIG instances."""
    uuid = str(pynvml.nvmlDeviceGetUUID(handle))
    pci = _address(_ask(pynvml.nvmlDeviceGetPciInfo, handle, default=None))
    reasons = _ask(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle, default=0)
    slowdowns = tuple(name for bit, name in SLOWDOWNS.items() if reasons & bit)
    uncorrected, ever = (
        _ask(pynvml.nvmlDeviceGetTotalEccErrors, handle, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, kind, default=None)
        for kind in (pynvml.NVML_VOLATILE_ECC, pynvml.NVML_AGGREGATE_ECC)
    )
    pending, failed = _repairs(handle)
    verdicts = [
        *faults.get((uuid, None), ()),
        health.of_memory(uncorrected=uncorrected, repair_pending=pending, repair_failed=failed),
        health.of_slowdowns(slowdowns),
    ]
    verdict, reason = health.worst(verdicts)
    mig, _ = _ask(pynvml.nvmlDeviceGetMigMode, handle, default=(pynvml.NVML_DEVICE_MIG_DISABLE, 0))
    card = Gpu(
        uuid=uuid,
        index=index,
        name=str(_ask(pynvml.nvmlDeviceGetName, handle, default=UNKNOWN_NAME)),
        **_sizes(handle, is_ours),
        pci=pci,
        numa=_numa(handle, pci),
        mig=mig == pynvml.NVML_DEVICE_MIG_ENABLE,
        temperature_c=_ask(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU, default=None),
        slowdowns=slowdowns,
        uncorrected=uncorrected,
        uncorrected_ever=ever,
        repair_pending=pending,
        repair_failed=failed,
        health=verdict,
        reason=reason,
    )
    return (card, *_read_instances(handle, card, verdicts, faults, is_ours)) if card.mig else (card,)


def _read_instances(
    handle: Any,
    card: Gpu,
    verdicts: Sequence[Verdict],
    faults: Mapping[Place, Sequence[Verdict]],
    is_ours: Callable[[int], bool],
) -> Iterator[Gpu]:
    """What is wrong with the card is wrong with every instance; a fault of one instance is its own."""
    for number in range(_ask(pynvml.nvmlDeviceGetMaxMigDeviceCount, handle, default=0)):
        instance = _ask(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, number, default=None)
        if instance is None:  # that place is empty
            continue
        place = (card.uuid, _ask(pynvml.nvmlDeviceGetGpuInstanceId, instance, default=WHOLE_CARD))
        verdict, reason = health.worst([*verdicts, *faults.get(place, ())])
        yield replace(
            card,
            uuid=str(pynvml.nvmlDeviceGetUUID(instance)),
            name=str(_ask(pynvml.nvmlDeviceGetName, instance, default=f"{card.name} MIG")),
            **_sizes(instance, is_ours),
            card=card.uuid,
            mig=False,
            health=verdict,
            reason=reason,
        )


def _silent(index: int, known: Sequence[Gpu], error: Any) -> tuple[Gpu, ...]:
    """A card that does not answer, with its instances, as far as it is known from before."""
    known = known or (Gpu(uuid=f"GPU-unknown-{index}", index=index, name=UNKNOWN_NAME, memory_mib=0),)
    reason = GONE.get(error.value, f"the driver cannot read it: {error}")
    return tuple(replace(gpu, health=Health.FAILED, reason=reason, temperature_c=None, links=()) for gpu in known)


def _sizes(handle: Any, is_ours: Callable[[int], bool]) -> dict[str, Any]:
    """Sizes in MiB. Where processes cannot be told apart, all that is used counts as foreign."""
    reserved_mib = 0
    try:
        detailed = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
        total, used, reserved_mib = detailed.total, detailed.used, -(-int(detailed.reserved) // MIB)
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound):  # drivers before 510
        plain = pynvml.nvmlDeviceGetMemoryInfo(handle)
        total, used = plain.total, plain.used
    used_mib = int(used) // MIB
    foreign = _foreign_mib(handle, is_ours)
    return {
        "memory_mib": int(total) // MIB,
        "reserved_mib": reserved_mib,
        "used_mib": used_mib,
        "foreign_mib": used_mib if foreign is None else foreign,
    }


def _foreign_mib(handle: Any, is_ours: Callable[[int], bool]) -> int | None:
    """Memory of the processes that are not ours; None where the driver does not tell who holds how much."""
    held: dict[int, int] = {}
    calls = (pynvml.nvmlDeviceGetComputeRunningProcesses_v3, pynvml.nvmlDeviceGetGraphicsRunningProcesses_v3)
    lists = [_ask(call, handle, default=None) for call in calls]
    if lists[0] is None:
        return None
    for process in (process for found in lists for process in found or ()):
        if is_ours(process.pid):
            continue
        if process.usedGpuMemory is None:
            return None
        held[process.pid] = max(held.get(process.pid, 0), int(process.usedGpuMemory))  # listed twice when it is both
    return sum(held.values()) // MIB


def _repairs(handle: Any) -> tuple[bool | None, bool | None]:
    """Repairs of the memory that wait for a reset, and that failed: rows from Ampere on, pages before."""
    rows = _ask(pynvml.nvmlDeviceGetRemappedRows, handle, default=None)
    if rows is not None:
        return bool(rows[2]), bool(rows[3])
    pages = _ask(pynvml.nvmlDeviceGetRetiredPagesPendingStatus, handle, default=None)
    return (None if pages is None else bool(pages)), None


def _address(pci: Any) -> str:
    return "" if pci is None else f"{pci.domain:04x}:{pci.bus:02x}:{pci.device:02x}.0"


def _numa(handle: Any, pci: str) -> int | None:
    """The node of the CPUs beside it: sysfs. NVML's own answer is for machines where GPU memory is a node itself."""
    try:
        node = int(Path(f"/sys/bus/pci/devices/{pci}/numa_node").read_text())
    except (OSError, ValueError):
        node = -1
    if node < 0:  # the firmware does not say
        node = _ask(pynvml.nvmlDeviceGetNumaNodeId, handle, default=-1)
    return None if node < 0 else int(node)


@dataclass(slots=True)
class _Wires:
    """Where a card's active NVLinks end: at these PCI addresses, or at a switch that joins all who reach one."""

    peers: set[str] = field(default_factory=set)
    switch: bool = False


def _read_wires(handle: Any) -> _Wires:
    wires = _Wires()
    for link in range(pynvml.NVML_NVLINK_MAX_LINKS):
        state = _ask(pynvml.nvmlDeviceGetNvLinkState, handle, link, default=None)
        if state is None:  # no more links, or none at all
            break
        if state != pynvml.NVML_FEATURE_ENABLED:
            continue
        kind = _ask(
            pynvml.nvmlDeviceGetNvLinkRemoteDeviceType, handle, link, default=pynvml.NVML_NVLINK_DEVICE_TYPE_GPU
        )
        if kind == pynvml.NVML_NVLINK_DEVICE_TYPE_SWITCH:
            wires.switch = True
        elif peer := _address(_ask(pynvml.nvmlDeviceGetNvLinkRemotePciInfo, handle, link, default=None)):
            wires.peers.add(peer)
    return wires


def _neighbours(addresses: Mapping[str, str], wires: Mapping[str, _Wires]) -> dict[str, tuple[str, ...]]:
    """By UUID the UUIDs that it reaches; whom one side names, the other reaches too."""
    at = {pci: uuid for uuid, pci in addresses.items() if pci and uuid in wires}
    switched = {uuid for uuid, found in wires.items() if found.switch}
    reached: dict[str, set[str]] = {uuid: set(switched) if uuid in switched else set() for uuid in wires}
    for uuid, found in wires.items():
        for peer in _known(found.peers, at):
            reached[uuid].add(peer)
            reached[peer].add(uuid)
    return {uuid: tuple(sorted(others - {uuid})) for uuid, others in reached.items()}


def _known(peers: Iterable[str], at: Mapping[str, str]) -> Iterator[str]:
    return (at[peer] for peer in peers if peer in at)
