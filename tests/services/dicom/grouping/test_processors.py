"""Settings of job processors: the documented ones, ours, and everything that is wrong."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from clara_flow.errors import SettingsError
from clara_flow.records.dicom_lines import Late
from clara_flow.records.dicom_models import AeTitle, Group, Instance
from clara_flow.records.state_machine import JobPriority
from clara_flow.services.dicom.grouping import processors
from clara_flow.services.dicom.grouping.ae_title import AeTitleProcessor
from clara_flow.services.dicom.grouping.processors import Plan, ProcessorSettings, parse_tag
from clara_flow.services.dicom.grouping.tags import wanted_tags
from clara_flow.settings import load_settings

NOW = datetime(2026, 1, 2, tzinfo=UTC)
GROUP = Group(aetitle="BRAIN", calling_ae="MR-1", called_ae="BRAIN", key_digest="", opened=NOW, last_arrival=NOW)


def instance(**attributes: str) -> Instance:
    return Instance(
        id=1, group_id=GROUP.id, sop_instance_uid="1", sop_class_uid="1.2", series_uid="3", study_uid="4",
        transfer_syntax="5", path="p", size_bytes=1, association=uuid.uuid4(), arrived=NOW, attributes=attributes,
    )  # fmt: skip


def read(**settings: str) -> Any:
    return AeTitleProcessor().validate("BRAIN", {key.replace("_", "-"): value for key, value in settings.items()})


def test_claras_settings_and_their_defaults() -> None:
    plain = read(pipeline_seg="brain-extraction")
    assert (plain.timeout_s, plain.group_by, plain.priority) == (5.0, "0020000D", JobPriority.NORMAL)
    assert (plain.late, plain.expect, plain.retry_delay_s) == (Late.NEW, ("attributes",), None)
    rich = AeTitleProcessor().validate(
        "BRAIN",
        {
            "pipeline-a": "x", "pipeline-b": " y ", "timeout": "0", "groupBy": "0010,0020", "priority": "Immediate",
            "jobRetryDelay": "5000", "argument-MODEL": "v2", "late": "rerun", "expect": "history, find",
            "rule-a": 'Modality == "MR"',
        },
    )  # fmt: skip
    assert dict(rich.pipelines) == {"a": "x", "b": "y"}
    assert (rich.timeout_s, rich.group_by, rich.priority) == (0.0, "00100020", JobPriority.IMMEDIATE)
    assert (rich.retry_delay_s, rich.late, rich.expect) == (5.0, Late.RERUN, ("history", "find"))
    assert dict(rich.arguments) == {"MODEL": "v2"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "pipeline-<label>: at least one is needed"),
        ({"pipeline-": "x"}, "pipeline-: there is no such setting; did you mean pipeline-<label>"),
        ({"pipeline-a": " "}, "pipeline-a: names no pipeline"),
        (
            {"pipeline-a": "x", "timeuot": "3"},
            "timeuot: there is no such setting; did you mean timeout or mppsTimeout?",
        ),
        ({"pipeline-a": "x", "groupby": "3"}, "did you mean groupBy"),
        ({"pipeline-a": "x", "zzz": "3"}, "zzz: there is no such setting; it takes timeout, groupBy"),
        ({"pipeline-a": "x", "timeout": "-1"}, "timeout: takes a number of seconds"),
        ({"pipeline-a": "x", "timeout": "nan"}, "timeout: takes a number of seconds"),
        ({"pipeline-a": "x", "timeout": "inf"}, "timeout: takes a number of seconds"),
        ({"pipeline-a": "x", "groupBy": "xyz"}, "groupBy: is no tag; write 0020,000D"),
        ({"pipeline-a": "x", "priority": "urgent"}, "priority: takes lower, normal, higher, immediate"),
        ({"pipeline-a": "x", "jobRetryDelay": "1.5"}, "jobRetryDelay: takes a whole number of milliseconds"),
        ({"pipeline-a": "x", "late": "never"}, "late: takes ignore, rerun, new"),
        ({"pipeline-a": "x", "expect": "magic"}, "expect: knows no 'magic'"),
        ({"pipeline-seg": "x", "rule-sge": "Modality"}, "rule-sge: there is no pipeline-sge; did you mean seg?"),
        ({"pipeline-a": "x", "rule-a": "Modality =="}, "rule-a, column 12: this is no rule"),
    ],
)
def test_what_is_wrong_is_named(settings: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        AeTitleProcessor().validate("BRAIN", settings)
    assert message in str(caught.value)
    assert str(caught.value).startswith("AE title BRAIN: ")


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        AeTitleProcessor().validate("BRAIN", {"timeout": "x", "late": "y", "zzz": ""})
    assert len(caught.value.problems) == 4


def test_a_group_becomes_a_job_of_each_pipeline_whose_rule_holds() -> None:
    settings = AeTitleProcessor().validate(
        "BRAIN",
        {"pipeline-all": "p", "pipeline-mr": "q", "pipeline-ct": "r", "argument-X": "1", "priority": "higher",
         "rule-mr": 'Modality == "MR" and CallingAE ~ "MR"', "rule-ct": 'Modality == "CT"'},
    )  # fmt: skip
    plans = AeTitleProcessor().plan(settings, GROUP, [instance(Modality="SR"), instance(Modality="MR")])
    assert plans == [
        Plan(label="all", pipeline="p", priority=JobPriority.HIGHER, arguments={"X": "1"}),
        Plan(label="mr", pipeline="q", priority=JobPriority.HIGHER, arguments={"X": "1"}),
    ]


@pytest.mark.parametrize("text", ["0020,000D", "(0020,000d)", "0020000D", "StudyInstanceUID", " 0020,000D "])
def test_tags(text: str) -> None:
    assert parse_tag(text) == "0020000D"


class Mine:
    name = "mine"

    def validate(self, ae_title: str, settings: Any) -> ProcessorSettings:
        return ProcessorSettings(timeout_s=float(settings["wait"]), group_by="00100020")

    def plan(self, settings: Any, group: Group, instances: Any) -> list[Plan]:
        return []


class NoProcessor:
    name = "none"


@pytest.fixture
def plug_ins(monkeypatch: pytest.MonkeyPatch) -> Any:
    def give(**points: str) -> None:
        found = [EntryPoint(name, value, processors.ENTRY_POINTS) for name, value in points.items()]
        monkeypatch.setattr(processors, "entry_points", lambda group: found if group == processors.ENTRY_POINTS else [])
        processors.installed.cache_clear()

    yield give
    processors.installed.cache_clear()


def test_plug_ins_are_found(plug_ins: Any) -> None:
    plug_ins(mine=f"{__name__}:Mine")
    row = AeTitle(name="A", ae_title="A", processor="mine", processor_settings={"wait": "3"}, created=NOW, updated=NOW)
    one = processors.configured(row)
    assert (one.grouping.timeout_s, one.source) == (3.0, "A (mine)")
    assert processors.group_tags([row]) == ("00100020",)


@pytest.mark.parametrize("value", [f"{__name__}:NoProcessor", f"{__name__}:nothing", "no_such_module:x"])
def test_plug_ins_that_cannot_be_used_are_named(plug_ins: Any, value: str) -> None:
    plug_ins(broken=value)
    with pytest.raises(SettingsError, match="the job processor 'broken'"):
        processors.find("broken")
    assert processors.find("ae-title").name == "ae-title"  # which it does not keep from others


def test_a_processor_that_is_not_there() -> None:
    with pytest.raises(SettingsError, match="there is no job processor 'nine'; there is ae-title"):
        processors.find("nine")


def test_tags_of_metadata_are_checked_before_anything_begins() -> None:
    own = load_settings(dicom_metadata=True, dicom_metadata_tags=("0008,0060", "Modalty"))
    with pytest.raises(SettingsError, match="dicom_metadata_tags: 'Modalty' is no tag"):
        wanted_tags(own)
    assert wanted_tags(own.model_copy(update={"dicom_metadata": False})) == ()
    assert wanted_tags(own.model_copy(update={"dicom_metadata_tags": ("0008,0060",)})) == (0x00080060,)


def test_the_processor_of_inference_requests_waits_and_makes_no_job() -> None:
    retrieve = processors.find("retrieve")
    settings = retrieve.validate("RETRIEVE", {})
    assert (settings.timeout_s, settings.expect, settings.group_by) == (600.0, (), "0020000D")
    assert retrieve.validate("RETRIEVE", {"timeout": "30"}).timeout_s == 30.0
    assert retrieve.plan(settings, GROUP, [instance()]) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timeout": "soon"}, "timeout: takes a number of seconds"),
        ({"pipeline-a": "x"}, "pipeline-a: there is no such setting; it takes timeout"),
        ({"timeot": "3"}, "did you mean timeout"),
    ],
)
def test_settings_that_it_does_not_take(settings: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        processors.validated("RETRIEVE", "retrieve", settings)
