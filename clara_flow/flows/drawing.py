"""Pictures of a plan: Mermaid and Graphviz text for people's own tools, and SVG that needs no tool at all.

All three are pure functions of the plan (the same plan gives the same bytes) and take the same optional
`states`, {operator name: state name}, which colours the boxes; names are compared without case, so `RUNNING`,
`Running` and `running` are one state. A state that is not known is written but not coloured.

In the SVG an output is one port of its box with one label, however many operators read it; places come from
`layered_layout`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from html import escape

from clara_flow.flows.layered_layout import Box, Layout, lay_out
from clara_flow.plan import Plan, PlanOperator, PlanRequests

PAYLOAD = ""  # the plan's own word for "from the job's payload" (PlanEdge.source)

_KINDS = {
    "waiting": ("pending", "scheduled", "waiting", "waitingforresources", "awaitingretry", "retrying", "paused"),
    "running": ("running", "cancelling"),
    "done": ("completed", "cached"),
    "failed": ("faulted", "failed", "crashed", "outofmemory", "timedout", "lost", "outputmissing", "terminated"),
    "skipped": ("skipped", "cancelled", "canceled", "evicted"),
}
_KIND_OF = {state: kind for kind, states in _KINDS.items() for state in states}
# kind: line and fill on a light ground, line and fill on a dark one
_COLOURS = {
    "waiting": ("#9a6700", "#fff8e1", "#d29922", "#2e2711"),
    "running": ("#0969da", "#e6f2ff", "#58a6ff", "#12263f"),
    "done": ("#1a7f37", "#e9f8ec", "#3fb950", "#12291a"),
    "failed": ("#cf222e", "#ffecea", "#f85149", "#34171a"),
    "skipped": ("#6e7781", "#f0f1f3", "#8b949e", "#21262d"),
}


def to_mermaid(plan: Plan, states: Mapping[str, str] | None = None) -> str:
    """The plan as a Mermaid flowchart, left to right.

    Mermaid itself refuses more than 500 edges unless its `maxEdges` is raised; such plans are better drawn as SVG.
    """
    shown = _States(states)
    ids = {PAYLOAD: "payload", **{operator.name: f"op{index}" for index, operator in enumerate(plan.operators)}}
    lines = ["---", f"title: {_yaml_text(plan.name)}", "---", "flowchart LR"]
    if _reads_payload(plan):
        lines.append('  payload(["payload"])')
    for operator in plan.operators:
        label = "<br/>".join(_mermaid_text(line) for line in _facts(operator, shown))
        lines.append(f'  {ids[operator.name]}["{label}"]')
    for (source, target), label in _edges_between(plan).items():
        arrow = f'-->|"{_mermaid_text(label)}"|' if label else "-->"
        lines.append(f"  {ids[source]} {arrow} {ids[target]}")
    for kind, (line, fill, _, _) in _COLOURS.items():
        if members := [ids[operator.name] for operator in plan.operators if shown.kind(operator.name) == kind]:
            lines.append(f"  classDef {kind} fill:{fill},stroke:{line},color:#1f2328")
            lines.append(f"  class {','.join(members)} {kind}")
    return "\n".join(lines) + "\n"


def to_dot(plan: Plan, states: Mapping[str, str] | None = None) -> str:
    """The plan as a Graphviz digraph, left to right: `dot -Tpdf plan.dot`."""
    shown = _States(states)
    lines = [
        f"digraph {_dot_text(plan.name)} {{",
        f'  graph [rankdir=LR, bgcolor="white", fontname="Helvetica", labelloc=t, label={_dot_text(plan.name)}];',
        (
            '  node [shape=box, style="rounded,filled", fillcolor="#ffffff", color="#8c959f", '
            'fontname="Helvetica", fontsize=11];'
        ),
        '  edge [color="#57606a", fontname="Helvetica", fontsize=9];',
    ]
    ids = {PAYLOAD: "payload", **{operator.name: f"op{index}" for index, operator in enumerate(plan.operators)}}
    if _reads_payload(plan):
        lines.append('  payload [label="payload", shape=cylinder];')
    for operator in plan.operators:
        look = ""
        if kind := shown.kind(operator.name):
            look = f', color="{_COLOURS[kind][0]}", fillcolor="{_COLOURS[kind][1]}"'
        label = _dot_text("\n".join(_facts(operator, shown)))
        lines.append(f"  {ids[operator.name]} [label={label}{look}];")
    for (source, target), label in _edges_between(plan).items():
        look = f" [label={_dot_text(label)}]" if label else ""
        lines.append(f"  {ids[source]} -> {ids[target]}{look};")
    return "\n".join([*lines, "}"]) + "\n"


def to_svg(plan: Plan, states: Mapping[str, str] | None = None) -> str:
    """The plan as a stand-alone SVG document with its own ground, readable on light and dark pages.

    Every box and arrow carries a `<title>` that browsers show under the pointer: names in full, `source → target`.
    """
    shown = _States(states)
    texts = {PAYLOAD: [("name", "payload")]} if _reads_payload(plan) else {}
    titles = {PAYLOAD: "the job's payload"}
    for operator in plan.operators:
        texts[operator.name] = _box_texts(operator, shown)
        facts = [operator.name, operator.description, *_facts(operator, shown)[1:]]
        titles[operator.name] = "\n".join(filter(None, facts))
    labels = {port: _cut("label", label) for port, label in _labels(plan).items()}
    layout = lay_out(
        {name: _box_size(lines) for name, lines in texts.items()},
        [(edge.source, edge.target, edge.output) for edge in plan.edges],
        {port: _text_width("label", label) for port, label in labels.items()},
    )
    caption = _cut("name", plan.name)
    width = max(layout.width, _text_width("name", caption) * 1.2) + 2 * _MARGIN
    height = layout.height + 2 * _MARGIN + _CAPTION_HEIGHT
    lines = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
            f'viewBox="0 0 {width:.0f} {height:.0f}" role="img">'
        ),
        f"<title>{_xml(plan.name)}</title>",
        f"<style>{_style()}</style>",
        (
            '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7.5" refY="4" markerWidth="8" markerHeight="8" '
            'markerUnits="userSpaceOnUse" orient="auto"><path class="head" d="M0,0.8 L8,4 L0,7.2 z"/></marker></defs>'
        ),
        f'<rect class="ground" x="0.5" y="0.5" width="{width - 1:.0f}" height="{height - 1:.0f}" rx="10"/>',
        f'<text class="caption" x="{_MARGIN}" y="{_MARGIN + 8}">{_xml(caption)}</text>',
        f'<g transform="translate({_MARGIN},{_MARGIN + _CAPTION_HEIGHT})">',
        *_svg_arrows(layout, labels),
        *(line for name in texts for line in _svg_box(layout.boxes[name], texts[name], titles[name], shown)),
        "</g>",
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------- what the pictures say


class _States:
    """The states as handed in, found by operator name without case."""

    def __init__(self, states: Mapping[str, str] | None) -> None:
        self._names = {operator.casefold(): str(state) for operator, state in (states or {}).items()}

    def name(self, operator: str) -> str:
        return self._names.get(operator.casefold(), "")

    def kind(self, operator: str) -> str:
        return _KIND_OF.get("".join(filter(str.isalnum, self.name(operator).casefold())), "")


def _facts(operator: PlanOperator, shown: _States) -> list[str]:
    """The lines of a box."""
    state = shown.name(operator.name)
    return [operator.name, operator.container.reference, _requests_text(operator.requests), *([state] if state else [])]


def _requests_text(requests: PlanRequests) -> str:
    memory = f"{requests.memory_mib} MiB"
    if requests.memory_mib >= 1024 and requests.memory_mib % 256 == 0:
        memory = f"{requests.memory_mib / 1024:g} GiB"
    gpu = f" · {requests.gpu} GPU" if requests.gpu else ""
    return f"{requests.cpu} CPU · {memory}{gpu}"


def _reads_payload(plan: Plan) -> bool:
    return any(edge.source == PAYLOAD for edge in plan.edges)


def _labels(plan: Plan) -> dict[tuple[str, str], str]:
    """{(source, output): output name and, where it is typed, element type and shape: `mask: float32[1,-1,-1]`}."""
    types = {(op.name, declared.name): declared.type for op in plan.operators for declared in op.outputs}
    labels = {}
    for edge in plan.edges:
        kind = ""
        if declared := types.get((edge.source, edge.output)):
            kind = declared.element_type or declared.type
            if declared.shape:
                kind += f"[{','.join(map(str, declared.shape))}]"
        labels[edge.source, edge.output] = ": ".join(filter(None, [edge.output, kind]))
    return labels


def _edges_between(plan: Plan) -> dict[tuple[str, str], str]:
    """{(source, target): labels of the outputs that flow}, in the plan's order, each label once."""
    labels = _labels(plan)
    between: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for edge in plan.edges:
        between[edge.source, edge.target][labels[edge.source, edge.output]] = None
    return {ends: ", ".join(filter(None, texts)) for ends, texts in between.items()}


def _mermaid_text(text: str) -> str:
    """Anything Mermaid, its Markdown or HTML could take for more than text becomes a `#code;` entity."""
    return "".join(c if c.isalnum() or c in " -_./:·" else f"#{ord(c)};" for c in _printable(text))


def _yaml_text(text: str) -> str:
    return '"' + _printable(text).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _dot_text(text: str) -> str:
    """A quoted Graphviz string; `\\N` and `&lt;` would otherwise be expanded in labels."""
    quoted = "\n".join(map(_printable, text.split("\n")))
    for plain, escaped in (("&", "&amp;"), ("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n")):
        quoted = quoted.replace(plain, escaped)
    return f'"{quoted}"'


def _xml(text: str) -> str:
    return escape(_printable(text), quote=True)


def _printable(text: str) -> str:
    """XML 1.0 allows no control characters, not even escaped; lone surrogates cannot be encoded."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


# ---------------------------------------------------------------- the parts of the SVG

_MARGIN = 20
_CAPTION_HEIGHT = 24
_TEXT_LIMIT = 300.0  # pixels; longer texts are cut and stand in full in the box's title

# css class: (pixels per character, line height, css); widths are those of wide common fonts, so that texts fit
_LINES = {
    "name": (7.7, 18, "font-size:13px;font-weight:600"),
    "image": (6.7, 15, "font-size:11px;font-family:ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace"),
    "requests": (6.3, 15, "font-size:11px"),
    "state": (6.8, 16, "font-size:11px;font-weight:600"),
    "label": (6.3, 13, "font-size:11px"),
}


def _box_texts(operator: PlanOperator, shown: _States) -> list[tuple[str, str]]:
    """(css class, text) of each line of a box."""
    name, image, requests, *state = _facts(operator, shown)
    lines = [*(("name", part) for part in _wrapped(name)), ("image", image), ("requests", requests)]
    return [(style, _cut(style, text)) for style, text in [*lines, *(("state", text) for text in state)]]


def _box_size(texts: list[tuple[str, str]]) -> tuple[float, float]:
    return max(_text_width(*line) for line in texts) + 30, sum(_LINES[style][1] for style, _ in texts) + 18.0


def _text_width(style: str, text: str) -> float:
    wide = sum(1 for c in text if ord(c) >= 0x1100)  # Chinese, Japanese and Korean signs take two columns
    return (len(text) + wide) * _LINES[style][0]


def _cut(style: str, text: str) -> str:
    """The end of an image reference tells more than its registry, the start of everything else more than its end."""
    if _text_width(style, text) <= _TEXT_LIMIT:
        return text
    room = int(_TEXT_LIMIT / _LINES[style][0] / (_text_width(style, text) / _text_width(style, "x" * len(text)))) - 1
    if style != "image":
        return f"{text[:room]}…"
    tail = text[-room:]
    return f"…{tail[tail.index('/') :] if '/' in tail else tail}"


def _wrapped(name: str) -> list[str]:
    """A long name on two lines, broken after a hyphen near its middle."""
    breaks = [index + 1 for index, c in enumerate(name[:-1]) if c in "-_"]
    if len(name) <= 30 or not breaks:
        return [name]
    middle = min(breaks, key=lambda place: abs(place - len(name) / 2))
    return [name[:middle], name[middle:]]


def _svg_arrows(layout: Layout, labels: Mapping[tuple[str, str], str]) -> list[str]:
    """Strokes first, labels after them, so that no stroke crosses a label."""
    strokes, texts = [], []
    for arrow in layout.arrows:
        label = labels[arrow.source, arrow.port]
        for stroke in arrow.strokes:
            straight = stroke.x0 + (_text_width("label", label) if (stroke.x0, stroke.y0) == arrow.start else 0)
            bend = (straight + stroke.x1) / 2
            curve = f"C{bend:.1f},{stroke.y0:.1f} {bend:.1f},{stroke.y1:.1f} {stroke.x1:.1f},{stroke.y1:.1f}"
            path = f'd="M{stroke.x0:.1f},{stroke.y0:.1f} H{straight:.1f} {curve}"'
            if stroke.target is None:
                strokes.append(f'<path class="edge" {path}/>')
                continue
            title = f"{arrow.source or 'payload'} → {stroke.target}{f': {label}' if label else ''}"
            strokes.append(f'<path class="edge" marker-end="url(#arrow)" {path}><title>{_xml(title)}</title></path>')
        if label:
            x, y = arrow.start
            texts.append(f'<text class="label" x="{x + 6:.1f}" y="{y - 4:.1f}">{_xml(label)}</text>')
    return strokes + texts


def _svg_box(box: Box, texts: list[tuple[str, str]], title: str, shown: _States) -> list[str]:
    kind = shown.kind(box.key) if box.key else ""
    top = box.y - box.height / 2
    shape = 'class="box" rx="6"' if box.key else 'class="box payload" rx="14"'
    size = f'width="{box.width:.1f}" height="{box.height:.1f}"'
    lines = [
        f'<g class="node {kind}">' if kind else '<g class="node">',
        f"<title>{_xml(title)}</title>",
        f'<rect {shape} x="{box.x:.1f}" y="{top:.1f}" {size}/>',
    ]
    if kind:
        bar = f'width="4" height="{box.height - 12:.1f}" rx="2"'
        lines.append(f'<rect class="bar" x="{box.x + 5:.1f}" y="{top + 6:.1f}" {bar}/>')
    y = top + 5
    for style, text in texts:
        y += _LINES[style][1]
        lines.append(f'<text class="{style}" x="{box.x + 16:.1f}" y="{y:.1f}">{_xml(text)}</text>')
    return [*lines, "</g>"]


def _style() -> str:
    light = (
        ".ground{fill:#fff;stroke:#d0d7de}.box{fill:#f6f8fa;stroke:#8c959f}.payload{fill:#ddf4ff;stroke:#54aeff}"
        ".name,.caption{fill:#1f2328}.image,.requests,.label{fill:#57606a}.edge{stroke:#8c959f}.head{fill:#8c959f}"
        ".label{stroke:#fff}"
    )
    dark = (
        ".ground{fill:#0d1117;stroke:#30363d}.box{fill:#161b22;stroke:#6e7681}.payload{fill:#0c2d4a;stroke:#388bfd}"
        ".name,.caption{fill:#e6edf3}.image,.requests,.label{fill:#9da7b3}.edge{stroke:#6e7681}.head{fill:#6e7681}"
        ".label{stroke:#0d1117}"
    )
    for kind, (line, fill, dark_line, dark_fill) in _COLOURS.items():
        light += f".{kind} .box{{fill:{fill};stroke:{line}}}.{kind} .bar,.{kind} .state{{fill:{line}}}"
        dark += f".{kind} .box{{fill:{dark_fill};stroke:{dark_line}}}.{kind} .bar,.{kind} .state{{fill:{dark_line}}}"
    return (
        "text{font-family:system-ui,'Segoe UI',Roboto,Helvetica,Arial,sans-serif}"
        ".caption{font-size:15px;font-weight:600}.edge{fill:none;stroke-width:1.4}"
        + "".join(f".{style}{{{css}}}" for style, (_, _, css) in _LINES.items())
        + ".label{paint-order:stroke;stroke-width:4px;stroke-linejoin:round}.state{fill:#6e7781}"
        + light
        + f"@media (prefers-color-scheme:dark){{{dark}}}"
    )
