"""Log lines: one shape, UTC, and no DICOM UIDs."""

from __future__ import annotations

import hashlib
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clara_flow.operators.sdk import log

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (INFO|WARNING|ERROR) [^:]+: (.*)\n")


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    line = LINE.fullmatch(capsys.readouterr().out)
    assert line is not None
    return line[2]


def test_facts_follow_the_message(capsys: pytest.CaptureFixture[str]) -> None:
    log.info("mask written", voxels=12, share=0.25, name="a b", empty="", quoted='x="1"')
    assert shown(capsys) == 'mask written voxels=12 share=0.25 name="a b" empty="" quoted="x=\\"1\\""'


@pytest.mark.parametrize("level", ["info", "warning", "error"])
def test_every_level_has_its_word(level: str, capsys: pytest.CaptureFixture[str]) -> None:
    getattr(log, level)("text")
    assert f" {level.upper()} " in capsys.readouterr().out


@pytest.mark.parametrize("around", ["{}", "{}.mhd is broken", "/in/{}/1.dcm", "series {}."])
def test_a_uid_is_written_as_its_hash(around: str, capsys: pytest.CaptureFixture[str]) -> None:
    uid = "1.2.840.113619.2.55.3"
    log.warning(around.format(uid), file=f"{uid}.mhd")
    text = shown(capsys)
    assert uid not in text
    assert text.count(f"uid:{hashlib.sha256(uid.encode()).hexdigest()[:12]}") == 2


@pytest.mark.parametrize("plain", ["1.0.2", "127.0.0.1", "2026.11.21", "0.25 1.5 2.5"])
def test_versions_addresses_and_numbers_stay(plain: str, capsys: pytest.CaptureFixture[str]) -> None:
    log.info(plain)
    assert shown(capsys) == plain


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 10**12), min_size=4, max_size=10))
def test_no_uid_passes(capsys: pytest.CaptureFixture[str], parts: list[int]) -> None:
    uid = ".".join(map(str, [1, *parts]))
    log.info("read", series=uid)
    assert uid not in shown(capsys)
