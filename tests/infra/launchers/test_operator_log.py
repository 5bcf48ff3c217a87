"""The operator's log: whatever comes in whatever pieces, file, lines and last lines are right and bounded."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from clara_flow.infra.launchers.log import FORWARDED_BYTES, FORWARDED_LINES, LAST_LINES, LINE_BYTES, OperatorLog


def write(chunks: list[bytes], *, limit_bytes: int) -> tuple[bytes, list[str], OperatorLog]:
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        log = OperatorLog(Path(folder) / "log", limit_bytes=limit_bytes, on_lines=lines.extend)
        log.open()
        for chunk in chunks:
            log.feed(chunk)
        log.close()
        log.close()
        assert [path.name for path in Path(folder).iterdir()] == ["log"]
        return log.path.read_bytes(), lines, log


@given(st.lists(st.binary(max_size=40), max_size=20), st.integers(2, 100))
def test_file_keeps_head_and_tail(chunks: list[bytes], limit_bytes: int) -> None:
    everything = b"".join(chunks)
    kept, _, log = write(chunks, limit_bytes=limit_bytes)
    assert log.total_bytes == len(everything)
    if len(everything) <= limit_bytes:
        assert kept == everything
    else:
        note = b"\nclara-flow: %d bytes were cut here\n" % (len(everything) - limit_bytes)
        half = limit_bytes // 2
        assert kept == everything[:half] + note + everything[len(everything) - (limit_bytes - half) :]


@given(st.text(alphabet="aä€🧠\n ", max_size=200), st.integers(1, 7))
def test_lines_do_not_depend_on_how_they_come(text: str, size: int) -> None:
    data = text.encode()
    chunks = [data[start : start + size] for start in range(0, len(data), size)]
    _, lines, log = write(chunks, limit_bytes=10_000)
    expected = text.split("\n")
    assert lines == (expected if expected[-1] else expected[:-1])
    assert log.last_lines() == (tuple(text.rstrip("\n").split("\n")[-LAST_LINES:]) if text else ())


def test_long_lines_are_split_between_characters() -> None:
    text = "€" * LINE_BYTES
    _, lines, _ = write([text.encode()], limit_bytes=100)
    assert "".join(lines) == text
    assert all(LINE_BYTES - 4 < len(line.encode()) <= LINE_BYTES for line in lines[:-1])


def test_watcher_gets_a_bounded_number_of_lines_and_is_told() -> None:
    _, lines, log = write([b"x\n" * (FORWARDED_LINES + 10)], limit_bytes=100)
    assert len(lines) == FORWARDED_LINES + 1
    assert lines[-1] == f"clara-flow: too much log to show here; the rest is in {log.path}"


def test_watcher_gets_a_bounded_number_of_bytes() -> None:
    _, lines, _ = write([b"x" * 1000 + b"\n"] * (FORWARDED_BYTES // 500), limit_bytes=100)
    assert sum(map(len, lines)) < FORWARDED_BYTES + 2000
    assert "the rest is in" in lines[-1]
