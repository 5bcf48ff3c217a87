"""Job processors of other packages, found as installed ones are found: the example of the guide, and broken ones."""

from __future__ import annotations

import threading
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import pytest
from dicom_spool import HandMade
from waiting import eventually

from clara_flow.deployments.trigger import House
from clara_flow.errors import InputError, SettingsError
from clara_flow.records import dicom_config, jobs
from clara_flow.records import dicom_group_queries as queries
from clara_flow.records import dicom_groups as records
from clara_flow.records.dicom_models import AeTitle, Group, GroupState, Instance
from clara_flow.records.state_machine import JobPriority
from clara_flow.services.dicom.config_check import check_aetitle
from clara_flow.services.dicom.grouping import processors, submissions
from clara_flow.services.dicom.grouping.grouper import Grouper
from clara_flow.services.dicom.grouping.processors import Plan, ProcessorSettings

EXAMPLE = Path(__file__).parents[4] / "docs" / "examples" / "job-processor"
Running = Callable[..., AbstractContextManager[Grouper]]
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Makes packages with these entry points known to the interpreter, as pip does; code: where their modules lie."""

    def put(points: Mapping[str, str], *, code: Path = Path(__file__).parent) -> None:
        folder = tmp_path / f"{'_'.join(points).replace('-', '_')}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {'-'.join(points)}\nVersion: 1.0\n")
        lines = [f"{name} = {value}" for name, value in points.items()]
        (folder / "entry_points.txt").write_text("\n".join([f"[{processors.ENTRY_POINTS}]", *lines, ""]))
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.syspath_prepend(str(code))
        processors.installed.cache_clear()

    yield put
    processors.installed.cache_clear()


def aetitle(name: str, processor: str, **settings: str) -> AeTitle:
    plain = {key.replace("_", "-") if key.startswith("pipeline") else key: text for key, text in settings.items()}
    return AeTitle(name=name, ae_title=name, processor=processor, processor_settings=plain)


def send(journal: HandMade, name: str, count: int, *, calling: str = "MODALITY", **attributes: str) -> None:
    association = journal.open(name, calling=calling)
    for _ in range(count):
        journal.store(association, study=f"1.{name}.{calling}", **attributes)
    journal.close(association)


def state_of(house: House, name: str) -> list[GroupState]:
    return [group.state for group in queries.list_groups(house.engine, aetitle=name)]


def test_the_example_of_the_guide_makes_jobs(
    lone_house: House, journal: HandMade, pipeline: str, running: Running, install: Install
) -> None:
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())
    install(project["project"]["entry-points"][processors.ENTRY_POINTS], code=EXAMPLE)
    with pytest.raises(InputError, match="fewest: Input should be a valid integer"):
        check_aetitle(aetitle("MIXED", "by-modality", fewest="some"))
    with pytest.raises(InputError, match="colour: Extra inputs are not permitted"):
        check_aetitle(aetitle("MIXED", "by-modality", colour="red"))
    settings = {"pipeline_MR": pipeline, "pipeline_CT": pipeline, "urgent": "ER_CT, ER_MR", "fewest": "2"}
    row = check_aetitle(aetitle("MIXED", "by-modality", timeout_s="0", **settings))
    dicom_config.add_aetitle(lone_house.engine, row)
    with running():
        send(journal, "MIXED", 3, calling="ER_CT", Modality="CT")
        send(journal, "MIXED", 2, calling="WARD", Modality="MR")
        send(journal, "MIXED", 1, calling="ALONE", Modality="MR")
        eventually(
            lambda: (
                sorted(state_of(lone_house, "MIXED"))
                == [GroupState.DISCARDED, GroupState.SUBMITTED, GroupState.SUBMITTED]
            ),
            within_s=30,
        )
    made = {job.name.split("-")[1]: job.priority for job in jobs.list_jobs(lone_house.engine)}
    assert made == {"ct": JobPriority.IMMEDIATE, "mr": JobPriority.NORMAL}


class Plain:
    """Does nothing amiss; `asked` is what it was told."""

    name = "plain"
    asked: ClassVar[list[tuple[Group, list[Instance]]]] = []

    def validate(self, ae_title: str, settings: Mapping[str, str]) -> ProcessorSettings:
        return ProcessorSettings(timeout_s=0)

    def plan(self, settings: Any, group: Group, instances: Sequence[Instance]) -> list[Plan]:
        self.asked.append((group, list(instances)))
        return []


class Breaking(Plain):
    """Raises what names a patient."""

    name = "breaking"
    mended = False

    def plan(self, settings: Any, group: Group, instances: Sequence[Instance]) -> list[Plan]:
        if not Breaking.mended:
            raise RuntimeError("DOE^JANE")
        return []


class Twice(Plain):
    """Means two jobs by one label."""

    name = "twice"

    def plan(self, settings: Any, group: Group, instances: Sequence[Instance]) -> list[Plan]:
        return [Plan(label="a", pipeline="x"), Plan(label="a", pipeline="y")]


class Hanging(Plain):
    """Does not come back."""

    name = "hanging"
    over = threading.Event()

    def plan(self, settings: Any, group: Group, instances: Sequence[Instance]) -> list[Plan]:
        Hanging.over.wait(60)
        return []


class Unsettled(Plain):
    """Breaks at the settings of an AE title."""

    name = "unsettled"

    def validate(self, ae_title: str, settings: Mapping[str, str]) -> ProcessorSettings:
        return ProcessorSettings(group_by=settings["tag"])


POINTS = {one.name: f"{__name__}:{one.__name__}" for one in (Plain, Breaking, Twice, Hanging, Unsettled)}


def test_a_processor_is_told_who_sent_what_when(
    lone_house: House, journal: HandMade, running: Running, install: Install
) -> None:
    """The calling AE, each instance's association and its time: Clara's processors were not told."""
    install(POINTS)
    Plain.asked.clear()
    dicom_config.add_aetitle(lone_house.engine, aetitle("ASKED", "plain"))
    with running():
        send(journal, "ASKED", 2, calling="SCANNER")
        eventually(lambda: state_of(lone_house, "ASKED") == [GroupState.DISCARDED], within_s=30)
    group, instances = Plain.asked[-1]
    assert (group.calling_ae, group.called_ae, group.aetitle) == ("SCANNER", "ASKED", "ASKED")
    assert len({one.association for one in instances}) == 1
    assert [one.arrived for one in instances] == sorted(one.arrived for one in instances)
    assert group.opened <= group.last_arrival


@pytest.mark.parametrize("broken", ["breaking", "twice", "hanging", "unsettled", "missing"])
def test_one_that_breaks_or_hangs_keeps_no_other(
    lone_house: House,
    journal: HandMade,
    pipeline: str,
    running: Running,
    install: Install,
    broken: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    install({**POINTS, "missing": "no_such_module:Nothing"})
    monkeypatch.setattr(submissions, "AT_ONCE", 2)
    monkeypatch.setattr(Breaking, "mended", False)
    Hanging.over.clear()
    dicom_config.add_aetitle(lone_house.engine, aetitle("BAD", broken))
    dicom_config.add_aetitle(lone_house.engine, aetitle("GOOD", "ae-title", timeout="0", **{"pipeline-a": pipeline}))
    try:
        with running():
            for number in range(3):
                send(journal, "BAD", 1, calling=f"M{number}")
            if broken in {"breaking", "twice", "hanging"}:
                eventually(lambda: GroupState.OPEN not in state_of(lone_house, "BAD"), within_s=30)
            send(journal, "GOOD", 1)
            eventually(lambda: state_of(lone_house, "GOOD") == [GroupState.SUBMITTED], within_s=30)
            assert GroupState.SUBMITTED not in state_of(lone_house, "BAD")
            if broken in {"breaking", "twice"}:
                eventually(lambda: set(state_of(lone_house, "BAD")) == {GroupState.FAILED}, within_s=30)
                told = {group.message for group in queries.list_groups(lone_house.engine, aetitle="BAD")}
                assert all(f"the job processor {broken!r}" in message for message in told)
                assert "DOE" not in "".join(told) + caplog.text
            if broken == "breaking":
                Breaking.mended = True
                for group in queries.list_groups(lone_house.engine, aetitle="BAD"):
                    records.retry(lone_house.engine, group.id)
                eventually(lambda: set(state_of(lone_house, "BAD")) == {GroupState.DISCARDED}, within_s=30)
            Hanging.over.set()
    finally:
        Hanging.over.set()


@pytest.mark.parametrize(
    ("processor", "settings", "message"),
    [
        ("unsettled", {}, "the job processor 'unsettled' broke at its settings: KeyError"),
        ("unsettled", {"tag": "no tag"}, "the job processor 'unsettled' broke at its settings: ValidationError"),
        ("missing", {}, "the job processor 'missing' .no_such_module:Nothing. cannot be used: No module named"),
    ],
)
def test_what_is_wrong_with_a_plug_in_is_told_when_an_ae_title_is_added(
    install: Install, processor: str, settings: dict[str, str], message: str
) -> None:
    """A tag that is none, in particular: listeners would look for it in every instance."""
    install({**POINTS, "missing": "no_such_module:Nothing"})
    with pytest.raises(InputError, match=message):
        check_aetitle(aetitle("BAD", processor, **settings))
    assert processors.group_tags([aetitle("BAD", processor, **settings)]) == ()
    assert processors.configured(aetitle("FINE", "plain")).settings.timeout_s == 0


def test_nobody_takes_the_name_of_another(install: Install) -> None:
    install({"ae-title": f"{__name__}:Plain", "again": f"{__name__}:Plain"})
    assert "plain" in processors.installed().processors
    with pytest.raises(SettingsError, match="there is a processor 'plain' already"):
        processors.find("again")
