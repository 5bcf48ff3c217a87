"""An outage fills no log."""

from __future__ import annotations

import logging

import pytest

from clara_flow.records.outages import REMIND_S, Outage


def test_an_outage_is_told_when_it_begins_now_and_then_and_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    clock = [0.0]
    outage = Outage(logging.getLogger("outage"), "the exporter", lambda: clock[0])
    caplog.set_level(logging.INFO, "outage")
    outage.over()
    for second in range(int(2.5 * REMIND_S)):
        clock[0] = float(second)
        outage.met(OSError("connection refused\nby the one at the door"))
    outage.over()
    outage.over()
    outage.met(OSError())
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", "the exporter waits: connection refused"),
        ("WARNING", f"the exporter waits since {REMIND_S:.0f} s: connection refused"),
        ("WARNING", f"the exporter waits since {2 * REMIND_S:.0f} s: connection refused"),
        ("INFO", f"the exporter goes on after {2.5 * REMIND_S - 1:.0f} s"),
        ("WARNING", "the exporter waits: OSError"),
    ]
