"""Pictures of plans: complete, deterministic, safe for any text, accepted by the tools that read them, and quick."""

import re
import shutil
import subprocess
import time
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clara_flow.flows.drawing import to_dot, to_mermaid, to_svg
from clara_flow.flows.layered_layout import lay_out
from clara_flow.plan import Plan, PlanContainer, PlanEdge, PlanInput, PlanOperator, PlanOutput, PlanRequests, PlanType

SVG = "{http://www.w3.org/2000/svg}"
DRAWINGS = [to_mermaid, to_dot, to_svg]


def operator(name, reads=(), writes=(), *, types=None, gpu=0):
    return PlanOperator(
        name=name,
        container=PlanContainer(image=f"nvcr.io/nvidia/clara/{name}", tag="0.7.3-2011.5"),
        inputs=tuple(PlanInput(path=f"/in{i}", upstream=u, output=o) for i, (u, o) in enumerate(reads)),
        outputs=tuple(PlanOutput(name=o, path=f"/{o}", type=(types or {}).get(o)) for o in writes),
        requests=PlanRequests(cpu=2, memory_mib=8192, gpu=gpu),
    )


def plan(*operators, name="a-pipeline"):
    edges = tuple(PlanEdge(source=i.upstream, target=op.name, output=i.output) for op in operators for i in op.inputs)
    return Plan(name=name, api_version="0.5.0", operators=operators, edges=edges)


FLOAT_VOLUME = PlanType(type="array", element_type="float32", shape=(1, -1, -1, -1))
SAMPLE = plan(
    operator("reader", [("", "")], ["volumes"]),
    operator("segmenter", [("reader", "volumes")], ["mask", "view"], types={"mask": FLOAT_VOLUME}, gpu=1),
    operator("writer", [("segmenter", "mask"), ("", "")], ["dicom"]),
    operator("register-volume-images-for-rendering", [("segmenter", "view")]),
    operator("register", [("writer", "dicom")]),
)


def parsed(text):
    return ElementTree.fromstring(text)  # noqa: S314 - our own output


def svg_titles(text):
    return [title.text or "" for title in parsed(text).iter(f"{SVG}title")]


def svg_texts(text):
    return [element.text or "" for element in parsed(text).iter(f"{SVG}text")]


@pytest.mark.parametrize("draw", DRAWINGS)
def test_a_drawing_is_deterministic_and_names_every_operator(draw):
    text = draw(SAMPLE)
    assert text == draw(SAMPLE)
    assert text.endswith("\n")
    for op in SAMPLE.operators:
        assert op.name in text


def test_svg_has_a_box_for_each_operator_and_the_payload_and_an_arrow_for_each_edge():
    titles = svg_titles(to_svg(SAMPLE))
    arrows = {title for title in titles if "→" in title}
    assert arrows == {
        "payload → reader",
        "payload → writer",
        "reader → segmenter: volumes",
        "segmenter → writer: mask: float32[1,-1,-1,-1]",
        "segmenter → register-volume-images-for-rendering: view",
        "writer → register: dicom",
    }
    root = parsed(to_svg(SAMPLE))
    assert len([g for g in root.iter(f"{SVG}g") if "node" in g.get("class", "")]) == len(SAMPLE.operators) + 1


def test_svg_box_says_image_and_requests_and_an_output_is_labelled_once():
    texts = svg_texts(to_svg(SAMPLE))
    assert "nvcr.io/nvidia/clara/reader:0.7.3-2011.5" in texts
    assert texts.count("2 CPU · 8 GiB · 1 GPU") == 1
    assert texts.count("mask: float32[1,-1,-1,-1]") == 1
    assert [text for text in texts if text.startswith("…")] == ["…er-volume-images-for-rendering:0.7.3-2011.5"]


def test_a_plan_without_payload_has_no_payload_box():
    alone = plan(operator("generator"))
    assert not any("payload" in draw(alone).replace(".payload", "") for draw in DRAWINGS)


@pytest.mark.parametrize("draw", DRAWINGS)
def test_states_colour_the_boxes_without_regard_to_case(draw):
    plain = draw(SAMPLE)
    coloured = draw(SAMPLE, {"READER": "COMPLETED", "segmenter": "OutOfMemory", "writer": "WaitingForResources"})
    assert coloured != plain
    for state in ("COMPLETED", "OutOfMemory", "WaitingForResources"):
        assert state in coloured
        assert state not in plain
    assert draw(SAMPLE, {"reader": "Strange"}).count("Strange") >= 1


def test_states_become_classes_in_svg():
    root = parsed(to_svg(SAMPLE, {"reader": "COMPLETED", "segmenter": "Timed-Out", "writer": "Odd"}))
    classes = [g.get("class") for g in root.iter(f"{SVG}g") if "node" in g.get("class", "")]
    assert classes == ["node", "node done", "node failed", "node", "node", "node"]


def test_svg_serves_light_and_dark_pages_and_loads_nothing():
    text = to_svg(SAMPLE)
    assert "@media (prefers-color-scheme:dark)" in text
    assert not re.search(r"href|<script|@import|url\((?!#)", text)


def test_mermaid_structure():
    lines = to_mermaid(SAMPLE, {"reader": "running"}).splitlines()
    assert lines[:4] == ["---", 'title: "a-pipeline"', "---", "flowchart LR"]
    assert '  op1 -->|"mask: float32#91;1#44;-1#44;-1#44;-1#93;"| op2' in lines
    assert "  payload --> op2" in lines
    assert "  class op0 running" in lines


DOT = shutil.which("dot")


@pytest.mark.skipif(DOT is None, reason="Graphviz is not installed")
@pytest.mark.parametrize("name", ["a-pipeline", 'quote"\\N&lt;<b>', "\\", "höhe 脳"])
def test_graphviz_accepts_dot_and_shows_the_same_text(name):
    drawn = plan(operator(name, [("", "")], ["o"]), operator("next", [(name, "o")]), name=name)
    done = subprocess.run([DOT, "-Tsvg"], input=to_dot(drawn), capture_output=True, text=True, check=True)
    assert done.stderr == ""
    shown = "".join(text.replace("\xa0", " ") for text in svg_texts(done.stdout))
    assert name in shown


def test_dot_is_balanced_and_one_statement_a_line():
    lines = to_dot(SAMPLE).splitlines()
    assert lines[0] == 'digraph "a-pipeline" {'
    assert lines[-1] == "}"
    assert all(line.endswith(";") for line in lines[1:-1])
    assert sum(" -> " in line for line in lines) == len(SAMPLE.edges)


ANY_TEXT = st.text(max_size=60)


@settings(max_examples=60, deadline=None)
@given(names=st.lists(ANY_TEXT.filter(bool), min_size=2, max_size=4, unique_by=str.casefold), label=ANY_TEXT)
def test_any_text_stays_text(names, label):
    first, *others = names
    drawn = plan(operator(first, [("", "")], [label]), *(operator(n, [(first, label)]) for n in others), name=label)
    titles = svg_titles(to_svg(drawn, {first: label}))  # parsing is the test: nothing broke out of its element
    assert sum("→" in title for title in titles) >= len(drawn.edges)
    mermaid = to_mermaid(drawn, {first: label}).splitlines()
    assert len([line for line in mermaid if line.startswith("  op") and "-->" not in line]) == len(names)
    assert all(line.count('"') in (0, 2) for line in mermaid[3:])
    for line in to_dot(drawn).splitlines():
        assert re.sub(r'"(\\.|[^"\\])*"', "", line).count('"') == 0


def test_boxes_do_not_overlap_and_arrows_run_to_the_right():
    sizes = {str(i): (100.0 + i % 7, 40.0 + i % 3 * 15) for i in range(60)}
    edges = [(str(i // 3), str(i), "") for i in range(1, 60)] + [("0", str(i), "far") for i in range(20, 60, 4)]
    layout = lay_out(sizes, edges, {("0", "far"): 50.0})
    boxes = list(layout.boxes.values())
    for index, one in enumerate(boxes):
        assert 0 <= one.x <= one.x + one.width <= layout.width
        assert 0 <= one.y - one.height / 2 < one.y + one.height / 2 <= layout.height + 1e-6
        for other in boxes[index + 1 :]:
            apart_x = one.x + one.width <= other.x or other.x + other.width <= one.x
            assert apart_x or abs(one.y - other.y) >= (one.height + other.height) / 2
    assert all(stroke.x0 < stroke.x1 for arrow in layout.arrows for stroke in arrow.strokes)


def test_long_arrows_pass_beside_the_boxes_between():
    sizes = dict.fromkeys("abcd", (100.0, 40.0))
    layout = lay_out(sizes, [("a", "b", ""), ("b", "c", ""), ("c", "d", ""), ("a", "d", "")], {})
    between = [layout.boxes["b"], layout.boxes["c"]]
    for stroke in layout.arrows[0].strokes:
        if stroke.y0 == stroke.y1 and stroke.target is None:  # a lane
            assert all(abs(stroke.y0 - box.y) > box.height / 2 for box in between if box.x == stroke.x0)
    assert {s.target for s in layout.arrows[0].strokes} == {None, "b", "d"}


def test_an_ordering_without_crossings_is_found():
    sizes = dict.fromkeys(("a1", "a2", "a3", "b1", "b2", "b3"), (50.0, 20.0))
    layout = lay_out(sizes, [("a1", "b3", ""), ("a2", "b2", ""), ("a3", "b1", "")], {})
    tops = sorted(("a1", "a2", "a3"), key=lambda name: layout.boxes[name].y)
    ends = sorted(("b3", "b2", "b1"), key=lambda name: layout.boxes[name].y)
    assert [{"a1": "b3", "a2": "b2", "a3": "b1"}[name] for name in tops] == ends


def chained(count):
    for index in range(count):
        reads = [("", "")] + ([(f"op{index - 1}", "a")] if index else [])
        yield operator(f"op{index}", reads, ["a"])


def fanned(count):
    yield from (operator(f"op{index}", [("", "")], ["a"]) for index in range(count - 1))
    yield operator("end", [(f"op{index}", "a") for index in range(count - 1)])


def skipping(count):  # every operator is read again much later: more lanes than are worth drawing
    for index in range(count):
        yield operator(f"op{index}", [(f"op{i}", "a") for i in (index - 1, index - 400) if i >= 0], ["a"])


@pytest.mark.parametrize("shape", [chained, fanned, skipping])
def test_a_thousand_operators_are_drawn_in_under_a_second(shape):
    large = plan(*shape(1000))
    for draw in DRAWINGS:
        started = time.process_time()
        text = draw(large)
        assert time.process_time() - started < 1
        assert "op999" in text or "end" in text
