"""What a definition compiles to: order, edges, defaults, names, arguments, services."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clara_flow.deployments.pipelines import bundled_names, find_definition, read_definition
from clara_flow.errors import DefinitionInvalid, InputError
from clara_flow.flows.compiler import CompileResult, Defaults, compile_pipeline, to_yaml
from clara_flow.flows.definition.problem import Severity
from clara_flow.flows.definition.tree import Site
from clara_flow.plan import (
    Plan,
    PlanConnection,
    PlanEdge,
    PlanInput,
    PlanModel,
    PlanRequests,
    PlanType,
    expand_command,
    substitute_builtins,
)

GOLDEN = Path(__file__).parent / "definition"


def operator(name: str, *reads: str, **keys: Any) -> dict[str, Any]:
    """An untyped operator with one output that reads from the operators named, or from the payload."""
    entries = [{"from": upstream, "path": f"/in/{index}"} for index, upstream in enumerate(reads)]
    return {
        "name": name,
        "container": {"image": "clara/test"},
        "input": entries or [{"path": "/input"}],
        "output": [{"path": "/output"}],
        **keys,
    }


def definition(*operators: dict[str, Any], version: str = "0.4.0", **keys: Any) -> str:
    return to_yaml({"api-version": version, "name": "test", **keys, "operators": list(operators)})


def plan_of(text: str, **options: Any) -> Plan:
    return compile_pipeline(text, source="test.yaml", **options).require_plan()


def golden(name: str, **options: Any) -> CompileResult:
    path = GOLDEN / name
    return compile_pipeline(path.read_bytes(), source=path.name, root=path.parent, **options)


def names(plan: Plan) -> list[str]:
    return [entry.name for entry in plan.operators]


def depth(plan: Plan) -> int:
    """Operators on the longest path."""
    longest: dict[str, int] = {}
    for entry in plan.operators:
        longest[entry.name] = 1 + max((longest[upstream] for upstream in entry.upstreams), default=0)
    return max(longest.values())


def test_order_is_topological_and_keeps_the_files_where_it_can() -> None:
    text = definition(operator("d", "c"), operator("b"), operator("c", "a"), operator("a"), operator("e", "b"))
    assert names(plan_of(text)) == ["b", "a", "c", "d", "e"]
    assert names(plan_of(definition(operator("z"), operator("m", "z"), operator("a")))) == ["z", "m", "a"]


def test_edges_are_told_once_each_with_the_upstreams_spelling() -> None:
    writer = {**operator("Writer"), "output": [{"name": "Mask", "path": "/mask"}, {"name": "log", "path": "/log"}]}
    reader = operator("reader")
    reader["input"] = [
        {"from": "WRITER", "name": "mask", "path": "/a"},
        {"from": "writer", "path": "/whole"},
        {"path": "/payload"},
    ]
    plan = plan_of(definition(reader, writer))
    assert plan.edges == (
        PlanEdge(source="", target="Writer"),
        PlanEdge(source="Writer", target="reader", output="Mask"),
        PlanEdge(source="Writer", target="reader"),
        PlanEdge(source="", target="reader"),
    )
    assert plan.operators[1].inputs[0] == PlanInput(name="mask", path="/a", upstream="Writer", output="Mask")
    assert plan.consumers("Writer", "log") == ("reader",)


def test_defaults_stand_where_nothing_is_asked() -> None:
    text = definition(operator("a"), operator("b", requests={"cpu": 0, "memory": "2048", "gpu": 2}))
    plan = plan_of(text, defaults=Defaults(cpu=3, memory_mib=512))
    assert plan.operator("a").requests == PlanRequests(cpu=3, memory_mib=512, gpu=0)
    assert plan.operator("B").requests == PlanRequests(cpu=3, memory_mib=2048, gpu=2)
    assert plan_of(text).operator("a").requests == PlanRequests(cpu=1, memory_mib=1024, gpu=0)


def test_text_stays_as_written() -> None:
    plan = golden("ok/numeric-tag.yaml").require_plan()
    only = plan.operators[0]
    assert (plan.name, only.name, only.container.reference) == ("2020", "yes", "localhost:5000/ubuntu:18.04")
    assert only.container.command == ("echo", "1.10", "0x10", "no", "2020-10-01", "1e3")
    assert only.variables == {"CLARA_TRACE": "2", "RATIO": "0.010", "EMPTY": "", "FLAG": "on", "TILDE": ""}
    assert (only.inputs[0].path, only.outputs[0].path) == ("/input", "/output")


def test_variables_under_container_give_way_to_the_operators_own() -> None:
    container = {"image": "clara/a", "variables": {"A": "inner", "B": "inner"}}
    plan = plan_of(definition(operator("a", container=container, variables={"A": "outer"})))
    assert plan.operators[0].variables == {"A": "outer", "B": "inner"}


def test_parameters_take_arguments_and_built_ins_wait_for_the_job() -> None:
    result = golden("ok/denovo-assembly.yaml", arguments={"VERSION": "9"})
    container = result.require_plan().operator("mapper").container
    assert container.reference == "nvcr.io/nvidia/clara/genomics-pipeline:9"
    assert container.command[-1] == "mapper /input /mapperOutput/${{JOB_ID}}"
    assert substitute_builtins(container.command[-1], {"JOB_ID": "42"}) == "mapper /input /mapperOutput/42"


def test_a_declared_parameter_hides_the_built_in_and_an_inner_one_the_outer() -> None:
    show = operator("show", parameters={"WHO": "inner"}, variables={"WHO": "${{WHO}}", "JOB": "${{JOB_ID}}"})
    also = operator("also", variables={"WHO": "${{WHO}}"})
    text = definition(show, also, parameters={"WHO": "outer", "JOB_ID": "mine"})
    plan = plan_of(text)
    assert plan.operator("show").variables == {"WHO": "inner", "JOB": "mine"}
    assert plan.operator("also").variables == {"WHO": "outer"}
    assert plan_of(text, arguments={"WHO": "me"}).operator("show").variables["WHO"] == "me"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"PACZ": "x"}, 'argument "PACZ" has no parameter; this document declares PACS, TAG; did you mean "PACS"?'),
        ({"PACS": "${{TAG}}"}, 'argument "PACS" asks for ${{TAG}}; values of parameters are plain text or'),
        ({"PACS": "a\0b"}, 'argument "PACS" holds a NUL or half a character'),
        ({"PACS": "\udcff"}, 'argument "PACS" holds a NUL or half a character'),
        ({"TAG": "x" * 2**20}, '"' + "x" * 59 + '…" is not an image tag'),
    ],
)
def test_arguments_that_cannot_be_used(arguments: dict[str, str], told: str) -> None:
    result = golden("ok/liver-tumor.yaml", arguments=arguments)
    assert result.plan is None
    assert told in str(result.problems[0])
    assert result.problems[0].code in ("P13", "P14")


def test_substitution_cannot_grow_without_a_limit() -> None:
    greedy = operator("a", container={"image": "clara/a", "command": ["${{X}}"] * 6000})
    result = compile_pipeline(definition(greedy, parameters={"X": "x" * 1000}), source="test.yaml")
    assert [problem.code for problem in result.problems] == ["P13"]
    assert "grow by more than 4 MiB" in result.problems[0].message


def test_types_are_told_in_one_spelling() -> None:
    outputs = golden("ok/fastio-passthrough.yaml").require_plan().operators[0].outputs
    assert [output.type for output in outputs] == [
        PlanType(type="array", element_type="float32", shape=(1, -1, -1, -1)),
        PlanType(type="array", element_type="int32", shape=(4,)),
        PlanType(type="array", element_type="uint8", shape=(1,)),
        PlanType(type="string"),
        PlanType(type="array", element_type="uint8", shape=(-1,)),
    ]


def test_untyped_documents_have_no_types() -> None:
    plan = golden("warn/old-and-odd.yaml").require_plan()
    assert all(entry.type is None for o in plan.operators for entry in (*o.inputs, *o.outputs))


def test_models_and_pinned_images() -> None:
    assert golden("warn/no-payload.yaml").require_plan().operator("infer").models == (
        PlanModel(name="m", version="2", platform="onnxruntime_onnx"),
    )
    image = golden("ok/series-selection.yaml").require_plan().operators[0].container
    assert image.reference == image.image
    assert "@sha256:" in image.reference


def test_services_are_shared_by_signature_not_by_name() -> None:
    def with_service(name: str, service: str, variables: dict[str, str], command: str = "serve") -> dict[str, Any]:
        container = {"image": "nvcr.io/nvidia/tritonserver", "tag": 20.07, "command": [command]}
        connections = {"http": [{"name": f"{name.upper()}_URI", "port": 8000}], "file": [{"name": "F", "path": "/m/"}]}
        parts = {"name": service, "container": container, "variables": variables, "connections": connections}
        return operator(name, services=[parts])

    plan = plan_of(
        definition(
            with_service("a", "triton", {"X": "1", "Y": "2"}),
            with_service("b", "other", {"Y": "2", "X": "1"}),
            with_service("c", "triton", {"X": "2"}),
            with_service("d", "triton", {"X": "1", "Y": "2"}, command="serve2"),
        )
    )
    a, b, c, d = (entry.services[0] for entry in plan.operators)
    assert a.signature == b.signature
    assert len({a.signature, c.signature, d.signature}) == 3
    assert a.container.reference == "nvcr.io/nvidia/tritonserver:20.07"
    assert b.connections == (
        PlanConnection(name="B_URI", kind="http", port=8000),
        PlanConnection(name="F", kind="file", path="/m"),
    )


def test_pipeline_wide_keys() -> None:
    plan = golden("ok/digital-pathology.yaml").require_plan()
    assert (plan.timeout_s, plan.scheduling) == (1800, "gang")
    assert plan.metadata == {"owner": "pathology", "revision": "7"}
    assert (plan.operators[0].timeout_s, plan.operators[0].retries) == (900, 1)
    assert plan.operators[0].requests.gpu == 1
    assert golden("ok/liver-tumor.yaml").require_plan().pull_secrets == ("local-registry",)


def test_keys_of_ours() -> None:
    plan = golden("ok/shared-gpu.yaml").require_plan()
    assert (plan.fastio_mib, plan.preemptible, plan.on_restart, plan.tenant) == (512, True, "evict", "radiology")
    liver, report = plan.operators
    assert liver.requests == PlanRequests(cpu=1, memory_mib=8192, gpu_memory_mib=6144)
    assert (liver.retry_on, liver.early_start) == (("lost", "timed-out"), True)
    assert report.requests == PlanRequests(gpu=1)
    assert (report.retry_on, report.early_start) == ((), False)


def test_keys_of_ours_have_defaults() -> None:
    plan = plan_of(definition(operator("a")))
    assert (plan.fastio_mib, plan.preemptible, plan.on_restart, plan.tenant) == (0, False, "resume", "")
    assert (plan.operators[0].retry_on, plan.operators[0].early_start) == (("lost", "preempted"), None)


MIB = 2**20


@pytest.mark.parametrize(
    ("outputs", "default_mib", "fastio_mib"),
    [
        ([], 64, 0),
        ([{"type": "stream", "element-type": "dicom", "path": "/output"}], 64, 0),
        ([{"type": "f64"}], 64, 2),  # a page of header and one of data: 1 MiB, and a quarter more
        ([{"type": "array", "element-type": "i16", "shape": [8, MIB]}], 0, 22),  # 16 MiB and a page: 17, then 21.25
        ([{"type": "array", "element-type": "u8", "shape": [4 * MIB - 4096]}], 0, 5),  # with its header exactly 4 MiB
        ([{"type": "string"}], 0, 0),
        ([{"type": "string"}], 64, 64),
        ([{"type": "string"}, {"type": "array", "element-type": "u8", "shape": [8 * MIB]}], 64, 64),
        ([{"type": "string"}, {"type": "array", "element-type": "u8", "shape": [80 * MIB]}], 64, 102),
    ],
)
def test_the_fastio_volume_holds_what_types_say(outputs: list[Any], default_mib: int, fastio_mib: int) -> None:
    made = operator("a")
    made["input"] = [{"name": "study", "path": "/input", "type": "stream", "element-type": "dicom"}]
    made["output"] = [{"name": f"o{number}", **output} for number, output in enumerate(outputs)]
    plan = plan_of(definition(made, version="0.6.0"), defaults=Defaults(fastio_mib=default_mib))
    assert plan.fastio_mib == fastio_mib
    said = plan_of(definition(made, version="0.6.0", fastio=7), defaults=Defaults(fastio_mib=default_mib))
    assert said.fastio_mib == 7


def test_covid_graph_is_the_published_one() -> None:
    plan = golden("warn/covid.yaml").require_plan()
    assert len(plan.operators) == 15
    assert depth(plan) == 5
    assert all(not o.outputs for o in plan.operators if o.name.startswith("register-"))
    assert plan.operator("dicom-seg-writer").variables == {"NVIDIA_SEG_LABELS": '["Lung-seg"]'}
    assert len({s.signature for o in plan.operators for s in o.services}) == 1


def test_multi_ai_asks_for_six_gpus() -> None:
    plan = golden("ok/multi-ai.yaml").require_plan()
    assert sum(o.requests.gpu for o in plan.operators) == 6
    assert plan.operator("volume-merger").upstreams == (
        "roi-split",
        "lung-tumor-segmentation",
        "colon-tumor-segmentation",
        "liver-tumor-segmentation",
        "spleen-segmentation",
    )


def test_imports_bring_their_own_parameters_and_take_a_local_name() -> None:
    plan = golden("ok/imports.yaml").require_plan()
    assert names(plan) == ["dicom-reader", "reader-2", "segmenter", "compare"]
    assert [o.variables for o in plan.operators[:2]] == [{"OUTPUT_FORMAT": "mhd"}, {"OUTPUT_FORMAT": "nii.gz"}]
    assert plan.operator("segmenter").container.image == "clara/ai-spleen"
    service, other = plan.operator("compare").services[0], plan.operator("segmenter").services[0]
    assert (service.name, other.name) == ("models", "triton")
    assert service.signature == other.signature


def test_what_the_site_has_and_allows() -> None:
    site = Site(models=frozenset({"segmentation_liver_v2"}), images=("clara/dicom-*", "clara/register-results"))
    told = [problem.message for problem in golden("ok/liver-tumor.yaml", site=site).problems]
    assert told == [
        'image "clara/ai-livertumor" is not allowed here; allowed are clara/dicom-*, clara/register-results',
        (
            'model "segmentation_liver_v1" does not exist; the repository has segmentation_liver_v2; '
            'did you mean "segmentation_liver_v2"?'
        ),
    ]


def test_a_definition_with_errors_raises_all_of_them() -> None:
    result = golden("err/p05-upstreams.yaml")
    with pytest.raises(DefinitionInvalid) as raised:
        result.require_plan()
    assert raised.value.problems == tuple(str(p) for p in result.problems if p.severity is Severity.ERROR)
    assert str(raised.value).startswith("p05-upstreams.yaml has 3 problems:\n")


def test_a_hundred_problems_are_all_told() -> None:
    text = definition(operator("reader"), *(operator(f"o{n}", f"raeder{n % 10}") for n in range(100)))
    result = compile_pipeline(text, source="test.yaml")
    assert [problem.code for problem in result.problems] == ["P05"] * 100
    assert all("reader" in problem.message for problem in result.problems)


def test_a_thousand_operators_compile() -> None:
    entries = [{"name": "p", "path": "/payload", "type": "stream", "element-type": "dicom"}]
    operators = []
    for number in range(1000):
        made = operator(f"operator-{number}", variables={"A": "1", "B": "${{B}}"}, requests={"cpu": 1, "memory": 512})
        upstream = {"name": "o", "path": "/in", "type": "stream", "element-type": "dicom"}
        made["input"] = [*entries, *([{**upstream, "from": f"operator-{number // 2}"}] if number else [])]
        made["output"] = [{"name": "o", "path": "/out", "type": "stream", "element-type": "dicom"}]
        operators.append(made)
    text = definition(*operators, version="0.6.0", parameters={"B": "2"})
    plan = plan_of(text)
    assert len(plan.operators) == 1000
    assert len(plan.edges) == 1999


@pytest.mark.parametrize(
    ("command", "expanded"),
    [
        ("$(A)", "1"),
        ("--x=$(A)/$(B_2)", "--x=1/$(A)"),  # what is put in is not expanded again
        ("$(NOBODY)", "$(NOBODY)"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$$", "$"),
        ("$A ${A} $", "$A ${A} $"),
        ("$(A", "$(A"),
        ("$()", "$()"),
        ("$(a$(A)", "$(a$(A)"),
        ("$(A$$", "$(A$"),
    ],
)
def test_commands_expand_as_in_kubernetes(command: str, expanded: str) -> None:
    assert expand_command((command, "plain"), {"A": "1", "B_2": "$(A)"}) == (expanded, "plain")


def test_command_expansion_takes_linear_time() -> None:
    assert expand_command(("$(" * 500_000,), {}) == ("$(" * 500_000,)


def test_built_ins_that_have_no_value_stay() -> None:
    assert substitute_builtins("${{ A }} ${{B}} ${{A", {"A": "${{B}}"}) == "${{B}} ${{B}} ${{A"


def test_bundled_definitions_are_in_order() -> None:
    assert "brain-extraction" in bundled_names()
    for name in bundled_names():
        path = find_definition(name)
        result = compile_pipeline(read_definition(path), source=path.name, root=path.parent)
        assert result.problems == ()
        assert result.require_plan().name == name


def test_definitions_are_found_by_path_before_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_definition("brain-extraction").parent != tmp_path
    Path("brain-extraction").write_text("mine")
    assert find_definition("brain-extraction") == Path("brain-extraction")
    with pytest.raises(InputError, match=r"nobody does not exist; .*: brain-extraction"):
        find_definition("nobody")
    with pytest.raises(InputError, match="is a folder"):
        find_definition(tmp_path)
    with pytest.raises(InputError, match="File name too long"):
        find_definition("x" * 5000)
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_definition(tmp_path / "gone.yaml")
