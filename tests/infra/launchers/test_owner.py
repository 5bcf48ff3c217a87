"""Owners: who is gone, who is not, and who cannot be known from here."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from clara_flow.infra.launchers.owner import Owner


def never(job_id: str) -> bool:
    raise AssertionError(f"nobody should have asked for {job_id}")


def test_this_process_lives() -> None:
    owner = Owner.current()
    assert owner.pid == os.getpid()
    assert not owner.is_gone(job_id="j", job_is_alive=never)


def test_another_process_of_the_same_number_is_not_the_owner() -> None:
    assert replace(Owner.current(), started=1).is_gone(job_id="j", job_is_alive=never)


def test_a_zombie_is_gone() -> None:
    program = "from clara_flow.infra.launchers.owner import Owner; print(Owner.current())"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        owner = Owner.parse(child.stdout.read().strip())
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert owner.is_gone(job_id="j", job_is_alive=never)


def test_on_another_machine_the_job_decides() -> None:
    stranger = replace(Owner.current(), place="another-boot.1")
    assert stranger.is_gone(job_id="j", job_is_alive=lambda job_id: job_id != "j")
    assert not stranger.is_gone(job_id="j", job_is_alive=lambda job_id: job_id == "j")


@given(st.text(), st.integers(0), st.integers(0))
def test_text_and_back(place: str, pid: int, started: int) -> None:
    owner = Owner(place, pid, started)
    assert Owner.parse(str(owner)) == owner
