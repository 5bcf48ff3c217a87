"""The command's last line of defence."""

from __future__ import annotations

from pathlib import Path

import pytest

from clara_flow.cli import app, start


class Interrupting:
    """A class attribute in whose making somebody presses Ctrl-C."""

    def __set_name__(self, owner: type, name: str) -> None:
        raise KeyboardInterrupt


def make_a_class() -> None:
    type("Model", (), {"field": Interrupting()})


def test_ctrl_c_while_a_class_is_made_is_an_interruption(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(app, "app", make_a_class)
    with pytest.raises(SystemExit) as ended:
        start.main()
    assert ended.value.code == start.INTERRUPTED
    assert capsys.readouterr().err == "clara-flow: interrupted\n"


def test_any_other_error_is_a_bug_with_its_traceback_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name, number = "Surname^Given", "PATIENT-ID"

    def broken() -> None:
        try:
            raise KeyError(name)
        except KeyError as error:
            raise ValueError(number) from error

    monkeypatch.setattr(app, "app", broken)
    with pytest.raises(SystemExit) as ended:
        start.main()
    assert ended.value.code == start.BUG
    told = capsys.readouterr().err
    assert "ValueError" in told
    report = Path(told.split()[-1])
    kept = report.read_text()
    report.unlink()
    assert "KeyError" in kept
    assert "in broken" in kept
    assert not [one for one in (name, number) if one in told + kept], "it is made to be sent to others"
