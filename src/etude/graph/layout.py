"""Layered drawing of a directed graph, top to bottom (Sugiyama, Tagawa and Toda, 1981), in plain Python.

Layers are longest paths; between two layers of boxes lies one of labels, so that no text ever meets another. An edge is
a chain of cells, one in each layer that it crosses. Cells of a layer are ordered by the barycentres of their
neighbours, a sweep down and a sweep up at a time, and the order with the fewest crossings is kept. Which cell comes
where does not depend on the sizes of the boxes, so a page can unfold a box and only place anew (page.js does).

Across a layer, cells come as near as they can to the mean of their neighbours without touching, in the least squares:
isotonic regression by pooling adjacent violators, which is exact. Lengths are pixels.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

GAP, BETWEEN = 28.0, 11.0
"""Between neighbours in a layer, and between layers."""
STRAIGHT, SHORT, LONG = 8.0, 4.0, 0.02
"""How strongly an edge pulls: within the chain of a long one, a short one, and a long one at the boxes it joins."""
STIFF, FIRM = 30.0, 10.0
"""How strongly, at last, cells keep to the line of what goes straight on, and to that of a long edge."""
SWEEPS = 12


@dataclass(frozen=True)
class Cell:
    """A node, or the place where an edge crosses a layer."""

    node: int = -1
    edge: int = -1


@dataclass
class Arrangement:
    """Which cell stands where: layers from the top, cells from the left; each edge's cells from its source to its
    target."""

    cells: list[Cell]
    layers: list[list[int]]
    chains: list[list[int]]


@dataclass
class Placed:
    """Centres of all cells, the span of each layer, and the size of the whole; from (0, 0)."""

    x: list[float]
    y: list[float]
    spans: list[tuple[float, float]] = field(default_factory=list)
    width: float = 0.0
    height: float = 0.0


def arrange(count: int, edges: Sequence[tuple[int, int]], *, top: set[int], bottom: set[int]) -> Arrangement:
    """Order nodes 0 ... count - 1, numbered so that every edge goes from a smaller rank to a larger. `top` and `bottom`
    are ports, which stand on the border."""
    ranks = _ranks(count, edges, top, bottom)
    depth = 2 * max(ranks, default=0) + 1
    cells = [Cell(node=i) for i in range(count)]
    layers: list[list[int]] = [[] for _ in range(depth)]
    for node in range(count):
        layers[2 * ranks[node]].append(node)
    chains = []
    for e, (source, target) in enumerate(edges):
        between = range(2 * ranks[source] + 1, 2 * ranks[target])
        chain = [source]
        for layer in between:
            layers[layer].append(len(cells))
            chain.append(len(cells))
            cells.append(Cell(edge=e))
        chains.append([*chain, target])
    return Arrangement(cells, _ordered(layers, chains), chains)


def _ranks(count: int, edges: Sequence[tuple[int, int]], top: set[int], bottom: set[int]) -> list[int]:
    after, before = defaultdict(list), defaultdict(list)
    for source, target in edges:
        after[source].append(target)
        before[target].append(source)
    ranks = [0] * count
    waiting = {node: len(before[node]) for node in range(count)}
    ready = [node for node in range(count) if not waiting[node]]
    order = []
    while ready:
        node = ready.pop()
        order.append(node)
        for target in after[node]:
            ranks[target] = max(ranks[target], ranks[node] + 1)
            waiting[target] -= 1
            if not waiting[target]:
                ready.append(target)
    assert len(order) == count, "the graph has a cycle"
    loose = set()  # what starts on its own, and what is made of that alone, stands just above what needs it
    for node in order:
        if node not in top and len(after[node]) >= len(before[node]) and loose.issuperset(before[node]):
            loose.add(node)
    for node in reversed(order):
        if node in loose and after[node]:
            ranks[node] = min(ranks[target] for target in after[node]) - 1
    lowest = max((ranks[node] for node in range(count) if node not in bottom), default=0)
    for node in bottom:
        ranks[node] = lowest + 1
    return ranks


def _ordered(layers: list[list[int]], chains: Sequence[Sequence[int]]) -> list[list[int]]:
    up, down = defaultdict(list), defaultdict(list)
    for chain in chains:
        for a, b in pairwise(chain):
            down[a].append(b)
            up[b].append(a)
    best, fewest = [list(layer) for layer in layers], _crossings(layers, down)
    current = [list(layer) for layer in layers]
    for sweep in range(SWEEPS):
        if not fewest:
            break
        downwards = sweep % 2 == 0
        near = up if downwards else down
        for i in range(1, len(current)) if downwards else range(len(current) - 2, -1, -1):
            place = {cell: k for k, cell in enumerate(current[i - 1 if downwards else i + 1])}
            own = {cell: k for k, cell in enumerate(current[i])}

            def wish(cell: int, place: Mapping[int, int] = place, own: Mapping[int, int] = own) -> float:
                around = [place[other] for other in near[cell] if other in place]  # noqa: B023 - called at once
                return sum(around) / len(around) if around else own[cell]

            current[i].sort(key=wish)
        crossings = _crossings(current, down)
        if crossings < fewest:
            best, fewest = [list(layer) for layer in current], crossings
    return best


def _crossings(layers: Sequence[Sequence[int]], down: Mapping[int, Sequence[int]]) -> int:
    """Pairs of edges between neighbouring layers that cross, counted by insertion."""
    total = 0
    for upper, lower in pairwise(layers):
        place = {cell: k for k, cell in enumerate(lower)}
        ends = [end for cell in upper for end in sorted(place[other] for other in down[cell])]
        total += sum(ends[i] > ends[j] for i in range(len(ends)) for j in range(i + 1, len(ends)))
    return total


def place(
    arrangement: Arrangement,
    size: Callable[[int], tuple[float, float]],
    port: Callable[[int, int], float] = lambda edge, end: 0.0,
) -> Placed:
    """Centres for cells of these sizes. `port(edge, end)` is how far right of its node's centre an edge starts (end 0)
    or ends (end 1)."""
    sizes = [size(cell) for cell in range(len(arrangement.cells))]
    placed = Placed([0.0] * len(sizes), [0.0] * len(sizes))
    y = 0.0
    for layer in arrangement.layers:
        height = max((sizes[cell][1] for cell in layer), default=0.0)
        for cell in layer:
            placed.y[cell] = y + height / 2
        placed.spans.append((y, y + height))
        y += height + BETWEEN
    placed.height = max(0.0, y - BETWEEN)

    pulls: dict[int, list[tuple[int, float, float]]] = defaultdict(list)
    for e, chain in enumerate(arrangement.chains):
        for k, (a, b) in enumerate(pairwise(chain)):
            inner = 0 < k < len(chain) - 2
            weight = STRAIGHT if inner else SHORT if len(chain) == 3 else LONG
            shift = (port(e, 0) if k == 0 else 0.0) - (port(e, 1) if k == len(chain) - 2 else 0.0)
            pulls[b].append((a, shift, weight))
            pulls[a].append((b, -shift, weight))
    row = {cell: i for i, layer in enumerate(arrangement.layers) for cell in layer}
    for layer in arrangement.layers:
        _settle(layer, sizes, placed.x, dict.fromkeys(layer, (0.0, 1.0)))
    for sweep in range(4 * SWEEPS):
        both = sweep >= 2 * SWEEPS
        downwards = sweep % 2 == 0
        for layer in arrangement.layers if downwards else reversed(arrangement.layers):
            wishes = {}
            for cell in layer:
                near = [p for p in pulls[cell] if both or (row[p[0]] < row[cell]) == downwards]
                weight = sum(w for _, _, w in near)
                wish = sum(w * (placed.x[other] + shift) for other, shift, w in near)
                wishes[cell] = (wish / weight, weight) if weight else (placed.x[cell], 0.1)
            _settle(layer, sizes, placed.x, wishes)
    _straighten(arrangement, sizes, placed.x, _spines(arrangement, port))
    left = min((placed.x[c] - sizes[c][0] / 2 for c in range(len(sizes))), default=0.0)
    placed.x = [x - left for x in placed.x]
    placed.width = max((placed.x[c] + sizes[c][0] / 2 for c in range(len(sizes))), default=0.0)
    return placed


def _spines(arrangement: Arrangement, port: Callable[[int, int], float]) -> list[list[tuple[int, float]]]:
    """Runs of cells joined by short edges, each the only one out of its box and into the next; each cell with how far
    right of the first it stands when the edges are vertical."""
    short = [e for e, chain in enumerate(arrangement.chains) if len(chain) == 3]
    outs, ins = (Counter(arrangement.chains[e][end] for e in short) for end in (0, -1))
    only = [e for e in short if outs[arrangement.chains[e][0]] == ins[arrangement.chains[e][-1]] == 1]
    after = {arrangement.chains[e][0]: e for e in only}
    begins = set(after) - {arrangement.chains[e][-1] for e in only}
    spines = []
    for cell in sorted(begins):
        spine = [(cell, 0.0)]
        while cell in after:
            e = after[cell]
            _, label, target = arrangement.chains[e]
            out = spine[-1][1] + port(e, 0)
            spine += [(label, out), (target, out - port(e, 1))]
            cell = target
        spines.append(spine)
    return spines


def _straighten(
    arrangement: Arrangement,
    sizes: Sequence[tuple[float, float]],
    x: list[float],
    spines: Sequence[Sequence[tuple[int, float]]],
) -> None:
    """What goes straight on runs down one line, and so does a long edge, on the outer side of what it passes."""
    for _ in range(SWEEPS):
        wishes = {cell: (x[cell], 1.0) for layer in arrangement.layers for cell in layer}
        for spine in spines:
            line = sum(x[cell] - shift for cell, shift in spine) / len(spine)
            for cell, shift in spine:
                wishes[cell] = (line + shift, STIFF)
        for chain in arrangement.chains:
            if len(chain) > 3:
                inner, ends = [x[cell] for cell in chain[1:-1]], [x[chain[0]], x[chain[-1]]]
                right = sum(inner) / len(inner) >= sum(ends) / 2
                for cell in chain[1:-1]:
                    wishes[cell] = (max(inner + ends) if right else min(inner + ends), FIRM)
        for layer in arrangement.layers:
            _settle(layer, sizes, x, wishes)


def _settle(
    layer: Sequence[int],
    sizes: Sequence[tuple[float, float]],
    x: list[float],
    wishes: Mapping[int, tuple[float, float]],
) -> None:
    """The x nearest to the wishes (position, weight) at which neighbours do not touch."""
    offsets, offset = [], 0.0
    for k, cell in enumerate(layer):
        if k:
            offset += (sizes[layer[k - 1]][0] + sizes[cell][0]) / 2 + GAP
        offsets.append(offset)
    blocks: list[list[float]] = []  # [weighted sum, weight, how many]
    for cell, offset in zip(layer, offsets):
        wish, weight = wishes[cell]
        blocks.append([weight * (wish - offset), weight, 1])
        while len(blocks) > 1 and blocks[-2][0] * blocks[-1][1] > blocks[-1][0] * blocks[-2][1]:
            last = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], last)]
    k = 0
    for total, weight, count in blocks:
        for _ in range(int(count)):
            x[layer[k]] = total / weight + offsets[k]
            k += 1
