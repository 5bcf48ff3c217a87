"""Places for the boxes and arrows of a layered drawing, left to right. Knows sizes and names, not what they mean.

Sugiyama's method: a box's layer is its longest path from the start, the order inside a layer comes from barycentre
sweeps that keep the order with the fewest crossings, and heights are the least-squares fit to straight arrows.
An arrow that spans several layers passes each of them in a lane of its own, so it never runs under a box.

Lengths are pixels; x grows to the right, y downwards. The same arguments give the same places.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

ROW_GAP = 22.0  # between the boxes of a layer
LANE_GAP = 14.0  # beside a lane
LAYER_GAP = 64.0  # between layers, beside the room for labels
PORT_INSET = 14.0  # between a box's corner and its first arrow
SWEEPS = 8
LANES_LIMIT = 5000  # more lanes would cost more time than they save crossings; arrows then run straight


@dataclass(slots=True, eq=False)
class Box:
    """A box, or with key None a lane. x: left edge; y: middle."""

    key: str | None
    width: float = 0.0
    height: float = 0.0
    layer: int = 0
    x: float = 0.0
    y: float = 0.0
    before: list[Box] = field(default_factory=list)
    after: list[Box] = field(default_factory=list)


@dataclass(slots=True)
class Stroke:
    """A piece of an arrow from (x0, y0) to (x1, y1). `target` is the box where the arrow ends, None on its way."""

    x0: float
    y0: float
    x1: float
    y1: float
    target: str | None


@dataclass(slots=True)
class Arrow:
    """All that leaves one box through one port. Readers share the strokes that they have in common."""

    source: str
    port: str
    strokes: list[Stroke]

    @property
    def start(self) -> tuple[float, float]:
        """Where the port is."""
        return self.strokes[0].x0, self.strokes[0].y0


@dataclass(slots=True)
class Layout:
    """`boxes` by key, `arrows` in the order of the edges; everything lies in (0, 0) to (width, height)."""

    boxes: dict[str, Box]
    arrows: list[Arrow]
    width: float
    height: float


def lay_out(
    sizes: Mapping[str, tuple[float, float]],
    edges: Iterable[tuple[str, str, str]],
    label_widths: Mapping[tuple[str, str], float],
) -> Layout:
    """Places for boxes and arrows.

    sizes           {key: (width, height)}, in a topological order.
    edges           (source, target, port): an arrow leaves `source` through `port`; equal ones are drawn once.
    label_widths    {(source, port): room that the port's label needs}.
    """
    boxes = {key: Box(key, width, height) for key, (width, height) in sizes.items()}
    edges = list(dict.fromkeys(edges))
    sources: dict[str, list[str]] = defaultdict(list)
    for source, target, _ in edges:
        sources[target].append(source)
    for key, box in boxes.items():
        box.layer = max((boxes[source].layer + 1 for source in sources[key]), default=0)
    ways, lanes = _ways(boxes, edges)
    layers: list[list[Box]] = [[] for _ in range(max((box.layer for box in boxes.values()), default=-1) + 1)]
    for box in [*boxes.values(), *lanes]:
        layers[box.layer].append(box)
    layers = _ordered(layers)
    width = _columns(layers, label_widths)
    height = _heights(layers)
    return Layout(boxes, _arrows(ways), width, height)


Way = list[tuple[Box, Box]]


def _ways(
    boxes: Mapping[str, Box], edges: Sequence[tuple[str, str, str]]
) -> tuple[dict[tuple[str, str], Way], list[Box]]:
    """{(source, port): the steps from box or lane to box or lane, each once}, and all lanes. Links neighbours."""
    reach: dict[tuple[str, str], int] = defaultdict(int)
    for source, target, port in edges:
        reach[source, port] = max(reach[source, port], boxes[target].layer)
    wanted = sum(last - boxes[source].layer - 1 for (source, _), last in reach.items())
    lanes: dict[tuple[str, str], list[Box]] = {
        key: [Box(None, layer=layer) for layer in range(boxes[key[0]].layer + 1, last)] if wanted <= LANES_LIMIT else []
        for key, last in reach.items()
    }
    ways: dict[tuple[str, str], Way] = {key: [] for key in reach}
    for key, way in ways.items():
        stops = [boxes[key[0]], *lanes[key]]
        way.extend(pairwise(stops))
    for source, target, port in edges:
        own = lanes[source, port]
        passed = boxes[target].layer - boxes[source].layer - 1
        ways[source, port].append((own[passed - 1] if own and passed else boxes[source], boxes[target]))
    for way in ways.values():
        for left, right in way:
            left.after.append(right)
            right.before.append(left)
    return ways, [lane for group in lanes.values() for lane in group]


def _ordered(layers: list[list[Box]]) -> list[list[Box]]:
    """Barycentre sweeps to and fro; the order with the fewest crossings stays."""
    best, fewest = layers, _crossings(layers)
    for sweep in range(SWEEPS):
        if fewest == 0:
            break
        layers = [list(layer) for layer in layers]
        forward = sweep % 2 == 0
        for index in range(1, len(layers)) if forward else range(len(layers) - 2, -1, -1):
            rank = {id(box): place for place, box in enumerate(layers[index - 1 if forward else index + 1])}
            wish = {}
            for place, box in enumerate(layers[index]):
                ranks = [rank[id(other)] for other in (box.before if forward else box.after) if id(other) in rank]
                wish[id(box)] = sum(ranks) / len(ranks) if ranks else float(place)
            layers[index].sort(key=lambda box, wish=wish: wish[id(box)])  # type: ignore[misc]
        if (crossings := _crossings(layers)) < fewest:
            best, fewest = layers, crossings
    return best


def _crossings(layers: list[list[Box]]) -> int:
    """Pairs of steps between neighbouring layers that cross."""
    total = 0
    for left, right in pairwise(layers):
        rank = {id(box): place for place, box in enumerate(right)}
        seen: list[int] = []
        for box in left:
            ends = [rank[id(other)] for other in box.after if id(other) in rank]
            total += sum(len(seen) - bisect_right(seen, end) for end in ends)
            for end in ends:
                insort(seen, end)
    return total


def _columns(layers: list[list[Box]], label_widths: Mapping[tuple[str, str], float]) -> float:
    """Sets every x; boxes of a layer get its widest box's width. Returns the drawing's width."""
    room: dict[str, float] = defaultdict(float)
    for (source, _), label_width in label_widths.items():
        room[source] = max(room[source], label_width)
    x = right = 0.0
    for layer in layers:
        width = max(box.width for box in layer)
        for box in layer:
            box.x, box.width = x, width
        right = x + width
        x = right + LAYER_GAP + max(room[box.key] if box.key is not None else 0.0 for box in layer)
    return right


def _heights(layers: list[list[Box]]) -> float:
    """Sets every y, the topmost edge at 0. Returns the drawing's height."""
    for layer in layers:
        _stack(layer, [0.0] * len(layer))
    for _ in range(SWEEPS):
        for layer in [*layers[1:], *layers[-2::-1]]:
            wanted = []
            for box in layer:
                around = [other.y for other in (*box.before, *box.after)]
                wanted.append(sum(around) / len(around) if around else box.y)
            _stack(layer, wanted)
    boxes = [box for layer in layers for box in layer]
    top = min((box.y - box.height / 2 for box in boxes), default=0.0)
    for box in boxes:
        box.y -= top
    return max((box.y + box.height / 2 for box in boxes), default=0.0)


def _stack(layer: list[Box], wanted: list[float]) -> None:
    """Gives each box of a layer, in order, the y nearest to the wanted one (least squares) without overlap.

    With the needed distances subtracted the heights must only not fall: isotonic regression by pooling neighbours.
    """
    offsets = [0.0]
    for upper, lower in pairwise(layer):
        gap = LANE_GAP if upper.key is None or lower.key is None else ROW_GAP
        offsets.append(offsets[-1] + (upper.height + lower.height) / 2 + gap)
    pools: list[tuple[float, int]] = []  # (mean, members)
    for wish, offset in zip(wanted, offsets, strict=True):
        mean, members = wish - offset, 1
        while pools and pools[-1][0] >= mean:
            other, count = pools.pop()
            mean, members = (mean * members + other * count) / (members + count), members + count
        pools.append((mean, members))
    places = (mean for mean, members in pools for _ in range(members))
    for box, place, offset in zip(layer, places, offsets, strict=True):
        box.y = place + offset


def _arrows(ways: Mapping[tuple[str, str], Way]) -> list[Arrow]:
    """Strokes between ports: those of a box's sides lie apart, in the order of what they lead to."""
    leaving: dict[int, list[tuple[float, tuple[str, str]]]] = defaultdict(list)
    arriving: dict[int, list[tuple[float, tuple[str, str]]]] = defaultdict(list)
    boxes: dict[int, Box] = {}
    for key, way in ways.items():
        source = way[0][0]
        ends = [right.y for left, right in way if left is source]
        boxes[id(source)] = source
        leaving[id(source)].append((sum(ends) / len(ends), key))
        for left, right in way:
            if right.key is not None:
                boxes[id(right)] = right
                arriving[id(right)].append((left.y, key))
    exits = {key: y for box, ends in leaving.items() for key, y in _ports(boxes[box], ends)}
    entries = {(box, key): y for box, ends in arriving.items() for key, y in _ports(boxes[box], ends)}
    arrows = []
    for key, way in ways.items():
        strokes = []
        for left, right in way:
            y0 = left.y if left.key is None else exits[key]
            if left.key is None:  # through the layer, before turning to the next one
                strokes.append(Stroke(left.x, left.y, left.x + left.width, left.y, None))
            y1 = right.y if right.key is None else entries[id(right), key]
            strokes.append(Stroke(left.x + left.width, y0, right.x, y1, right.key))
        unique = {(s.x0, s.y0, s.x1, s.y1, s.target): s for s in strokes}
        arrows.append(Arrow(*key, list(unique.values())))
    return arrows


def _ports(box: Box, ends: list[tuple[float, tuple[str, str]]]) -> list[tuple[tuple[str, str], float]]:
    room = max(box.height - 2 * PORT_INSET, 0.0)
    step = room / len(ends)
    top = box.y - room / 2
    return [(key, top + step * (index + 0.5)) for index, (_, key) in enumerate(sorted(ends))]
