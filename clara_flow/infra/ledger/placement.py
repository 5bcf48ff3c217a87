"""Where on a node it fits, and which devices it gets: best fit, so that the largest holes stay whole.

- A share of a device's memory goes to the device that already has shares and has the least memory left that suffices;
  a device without shares is opened only when it must be.
- Whole devices are chosen connected by NVLink first, then on one NUMA node, then so that the fewest NVLink connections
  to other free devices are cut, then the smallest. Devices that hold memory of foreign processes are the last choice.
- Among nodes, work that takes GPUs now goes where the fewest whole GPUs stay free. A job that takes none yet but will
  need them goes where the fewest jobs share a GPU; one that never will, to nodes without GPUs before others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from clara_flow.infra.ledger.demand import Demand
from clara_flow.infra.ledger.model import Amounts, Device, Node

Indices = tuple[int, ...]  # of devices of one node, in the order of Node.devices
Score = tuple[float, ...]  # less is better


@dataclass(slots=True)
class Free:
    """What of a node is free at one moment; negative where it holds more than it has (a device vanished).

    room_mib    by device: memory for further shares; foreign memory is no room, a device held whole has none.
    holders     by device: how many leases hold it or a share of it.
    """

    cpu: int
    memory_mib: int
    fastio_mib: int
    jobs: int
    room_mib: list[int]
    holders: list[int]

    def copy(self) -> Free:
        """An independent copy."""
        return Free(self.cpu, self.memory_mib, self.fastio_mib, self.jobs, self.room_mib[:], self.holders[:])

    def meet(self, other: Free) -> Free:
        """What is free at both moments, the same devices included."""
        return Free(
            min(self.cpu, other.cpu),
            min(self.memory_mib, other.memory_mib),
            min(self.fastio_mib, other.fastio_mib),
            min(self.jobs, other.jobs),
            list(map(min, self.room_mib, other.room_mib)),
            list(map(max, self.holders, other.holders)),
        )

    def covers(self, amounts: Amounts) -> bool:
        """Whether everything but devices is there; what is not asked for is not looked at."""
        return (
            (amounts.cpu <= self.cpu or not amounts.cpu)
            and (amounts.memory_mib <= self.memory_mib or not amounts.memory_mib)
            and (amounts.fastio_mib <= self.fastio_mib or not amounts.fastio_mib)
            and (amounts.jobs <= self.jobs or not amounts.jobs)
        )


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a demand goes: the devices of each of its parts. Compare `score` among nodes."""

    devices: tuple[Indices, ...]
    score: Score


@dataclass(slots=True)
class Site:
    """A node with what is free on it now."""

    node: Node
    free: Free = field(init=False)
    index: dict[str, int] = field(init=False)
    usable: Indices = field(init=False)
    links: tuple[int, ...] = field(init=False)  # by device: the devices it reaches by NVLink, as a bit mask

    def __post_init__(self) -> None:
        devices = self.node.devices
        self.index = {device.uuid: position for position, device in enumerate(devices)}
        self.usable = tuple(position for position, device in enumerate(devices) if device.usable)
        self.links = tuple(
            sum(1 << self.index[uuid] for uuid in device.links if uuid in self.index and uuid != device.uuid)
            for device in devices
        )
        self.free = self.empty()

    def empty(self) -> Free:
        """What is free when nobody holds anything."""
        node = self.node
        return Free(
            node.cpu,
            node.memory_mib,
            node.fastio_mib,
            node.jobs,
            [device.memory_mib - device.foreign_mib for device in node.devices],
            [0] * len(node.devices),
        )

    def positions(self, uuids: Iterable[str]) -> Indices:
        """Of these devices; those that the node no longer has are left out."""
        return tuple(self.index[uuid] for uuid in uuids if uuid in self.index)

    def take(self, free: Free, amounts: Amounts, devices: Indices, sign: int = -1) -> None:
        """Take it out of `free`; `give` puts it back."""
        free.cpu += sign * amounts.cpu
        free.memory_mib += sign * amounts.memory_mib
        free.fastio_mib += sign * amounts.fastio_mib
        free.jobs += sign * amounts.jobs
        for position in devices:
            free.room_mib[position] += sign * (
                self.node.devices[position].memory_mib if amounts.gpu else amounts.gpu_memory_mib
            )
            free.holders[position] -= sign

    def give(self, free: Free, amounts: Amounts, devices: Indices) -> None:
        """Put back what `take` took."""
        self.take(free, amounts, devices, 1)

    def can_serve(self, demand: Demand) -> bool:
        """Whether it could be granted here if nobody held anything, each of its needs included.

        Failed and drained devices do not count: a job that is admitted stays on its node. On a node that is drained
        the jobs that run there may end, so their operators are served.
        """
        if not self.node.usable if demand.node is None else demand.node != self.node.name:
            return False
        empty = self.empty()
        for position in self.usable:  # foreign memory may go away
            empty.room_mib[position] = self.node.devices[position].memory_mib
        largest_mib = max((empty.room_mib[position] for position in self.usable), default=0)
        return self.fits(empty, demand) and all(
            empty.covers(need) and need.gpu <= len(self.usable) and need.gpu_memory_mib <= largest_mib
            for need in demand.needs
        )

    def place(self, free: Free, demand: Demand) -> Placement | None:
        """The best place for it in `free`, a view of this node; None when it does not fit."""
        if not self.fits(free, demand):
            return None
        devices = self._choose(free, demand.parts)
        return None if devices is None else Placement(devices, self._score(free, demand, devices))

    def fits(self, free: Free, demand: Demand) -> bool:
        """Whether `place` finds a place: the quick half of it."""
        total = demand.total
        if not free.covers(total):
            return False
        if not (total.gpu or total.gpu_memory_mib):
            return True
        if sum(bool(amounts.gpu or amounts.gpu_memory_mib) for amounts in demand.parts) > 1:
            return self._choose(free, demand.parts) is not None
        if total.gpu:
            return [free.holders[position] for position in self.usable].count(0) >= total.gpu
        return any(free.room_mib[position] >= total.gpu_memory_mib for position in self.usable)

    def _choose(self, free: Free, parts: Sequence[Amounts]) -> tuple[Indices, ...] | None:
        chosen: list[Indices] = []
        for number, amounts in enumerate(parts):
            if amounts.gpu:
                devices = self._whole(free, amounts.gpu)
            elif amounts.gpu_memory_mib:
                devices = self._share(free, amounts.gpu_memory_mib)
            else:
                devices = ()
            if devices is None:
                return None
            chosen.append(devices)
            if devices and number + 1 < len(parts):
                free = free.copy()
                self.take(free, amounts, devices)
        return tuple(chosen)

    def _share(self, free: Free, share_mib: int) -> Indices | None:
        best = min(
            (
                (free.holders[position] == 0, free.room_mib[position], position)
                for position in self.usable
                if free.room_mib[position] >= share_mib
            ),
            default=None,
        )
        return None if best is None else (best[-1],)

    def _whole(self, free: Free, count: int) -> Indices | None:
        open_ = [position for position in self.usable if not free.holders[position]]
        if len(open_) < count:
            return None
        if len(open_) == count:
            return tuple(open_)
        everything = sum(1 << position for position in open_)
        seeds = {self._kind(position, everything): position for position in reversed(open_)}
        candidates = {self._grow(seed, open_, everything, count) for seed in seeds.values()}
        return min(candidates, key=lambda devices: (self._quality(devices, everything), devices))

    def _kind(self, position: int, everything: int) -> tuple[object, ...]:
        """Devices of one kind lead to equally good sets: only the first of each is tried."""
        device = self.node.devices[position]
        return device.foreign_mib > 0, device.numa, device.memory_mib, (self.links[position] & everything).bit_count()

    def _grow(self, seed: int, open_: list[int], everything: int, count: int) -> Indices:
        chosen = [seed]
        mask = 1 << seed
        numa = {self.node.devices[seed].numa}
        left = set(open_) - {seed}
        while len(chosen) < count:

            def cost(position: int, mask: int = mask, numa: set[int | None] = numa) -> tuple[float, ...]:
                device = self.node.devices[position]
                inside = (self.links[position] & mask).bit_count()
                outside = (self.links[position] & everything & ~mask).bit_count()
                if not inside and len(chosen) + 1 < count:  # a new group begins: one that can grow
                    outside = -outside
                return device.foreign_mib > 0, -inside, device.numa not in numa, outside, device.memory_mib, position

            best = min(left, key=cost)
            left.remove(best)
            chosen.append(best)
            mask |= 1 << best
            numa.add(self.node.devices[best].numa)
        return tuple(sorted(chosen))

    def _quality(self, devices: Indices, everything: int) -> Score:
        mask = sum(1 << position for position in devices)
        those: list[Device] = [self.node.devices[position] for position in devices]
        return (
            sum(device.foreign_mib > 0 for device in those),
            -sum((self.links[position] & mask).bit_count() for position in devices),
            len({device.numa for device in those}),
            sum((self.links[position] & everything & ~mask).bit_count() for position in devices),
            sum(device.memory_mib for device in those),
        )

    def _score(self, free: Free, demand: Demand, devices: tuple[Indices, ...]) -> Score:
        taken = [position for part in devices for position in part]
        jobs = self.node.jobs - free.jobs
        if not taken:
            sharing = len(self.usable) if demand.wants_gpu else self.node.jobs
            return bool(self.node.devices) and not demand.wants_gpu, jobs / max(sharing, 1)
        open_ = [position for position in self.usable if not free.holders[position]]
        everything = sum(1 << position for position in open_)
        opened = sum(not free.holders[position] for position in taken)
        room_mib = sum(free.room_mib[position] for position in taken) if demand.total.gpu_memory_mib else 0
        foreign, linked, numa, cut, memory_mib = self._quality(tuple(taken), everything)
        return foreign if demand.total.gpu else 0, opened, linked, numa, len(open_) - opened, room_mib, cut, memory_mib
