"""One flush for all that wait, one at a time."""

from __future__ import annotations

import threading

import pytest
from waiting import eventually

from clara_flow.services.dicom.group_sync import GroupSync


def start(*targets: object) -> list[threading.Thread]:
    threads = [threading.Thread(target=target, daemon=True) for target in targets]  # type: ignore[arg-type]
    for thread in threads:
        thread.start()
    return threads


def test_who_is_alone_flushes_in_its_own_thread() -> None:
    flushed: list[tuple[list[int], int]] = []

    def flush(items: list[int]) -> list[Exception | None]:
        flushed.append((items, threading.get_ident()))
        return [None] * len(items)

    group = GroupSync(flush)
    group.put(1)
    group.put(2)
    assert flushed == [([1], threading.get_ident()), ([2], threading.get_ident())]


def test_all_that_come_during_a_flush_share_the_next_one() -> None:
    begun, may_end = threading.Event(), threading.Event()
    flushed: list[list[int]] = []

    def flush(items: list[int]) -> list[Exception | None]:
        flushed.append(items)
        if len(flushed) == 1:
            begun.set()
            may_end.wait(10)
        return [None] * len(items)

    group = GroupSync(flush)
    threads = start(lambda: group.put(0))
    assert begun.wait(10)
    for number in range(1, 9):
        threads += start(lambda number=number: group.put(number))  # type: ignore[misc]
    eventually(lambda: len(group._waiting) == 8)
    may_end.set()
    for thread in threads:
        thread.join(10)
    assert [len(items) for items in flushed] == [1, 8]
    assert sorted(flushed[1]) == list(range(1, 9))


def test_each_is_told_its_own_trouble() -> None:
    def flush(items: list[int]) -> list[Exception | None]:
        return [ValueError(f"{item} is odd") if item % 2 else None for item in items]

    group = GroupSync(flush)
    told: dict[int, str] = {}

    def put(number: int) -> None:
        try:
            group.put(number)
        except ValueError as error:
            told[number] = str(error)

    threads = start(*(lambda number=number: put(number) for number in range(32)))  # type: ignore[misc]
    for thread in threads:
        thread.join(10)
    assert told == {number: f"{number} is odd" for number in range(1, 32, 2)}


def test_trouble_with_the_flush_itself_does_not_end_the_next() -> None:
    troubles = [OSError("the disk"), KeyboardInterrupt()]

    def flush(items: list[int]) -> list[Exception | None]:
        if troubles:
            raise troubles.pop(0)
        return [None] * len(items)

    group = GroupSync(flush)
    with pytest.raises(OSError, match="the disk"):
        group.put(1)
    with pytest.raises(KeyboardInterrupt):
        group.put(2)
    group.put(3)


def test_many_threads_lose_nothing_and_double_nothing() -> None:
    flushed: list[int] = []
    within = threading.Lock()

    def flush(items: list[int]) -> list[Exception | None]:
        assert within.acquire(blocking=False)
        flushed.extend(items)
        within.release()
        return [None] * len(items)

    group = GroupSync(flush)

    def put(first: int) -> None:
        for number in range(first, first + 500):
            group.put(number)
            assert number in flushed[-2000:]

    threads = start(*(lambda first=first: put(first) for first in range(0, 4000, 500)))  # type: ignore[misc]
    for thread in threads:
        thread.join(60)
    assert sorted(flushed) == list(range(4000))
