"""Properties of the layered drawing, for any graph."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from etude.graph.layout import arrange, place


@st.composite
def graphs(draw):
    count = draw(st.integers(1, 14))
    pairs = [(a, b) for a in range(count) for b in range(a + 1, count)]
    edges = draw(st.lists(st.sampled_from(pairs), unique=True, max_size=24)) if pairs else []
    sizes = draw(st.lists(st.tuples(st.floats(4, 200), st.floats(0, 90)), min_size=count, max_size=count))
    return count, edges, sizes


def placed(graph):
    count, edges, sizes = graph
    arranged = arrange(count, edges, top=set(), bottom=set())
    size = lambda cell: sizes[cell] if cell < count else (30.0, 12.0)  # noqa: E731
    return arranged, [size(cell) for cell in range(len(arranged.cells))], place(arranged, size)


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_nothing_overlaps_and_edges_go_down(graph):
    arranged, sizes, at = placed(graph)
    for layer in arranged.layers:
        for a, b in pairwise(layer):
            assert at.x[b] - at.x[a] >= (sizes[a][0] + sizes[b][0]) / 2 - 1e-6
    for (_, bottom), (top, _) in pairwise(at.spans):
        assert top > bottom
    row = {cell: i for i, layer in enumerate(arranged.layers) for cell in layer}
    assert sorted(row) == list(range(len(arranged.cells)))
    for (source, target), chain in zip(graph[1], arranged.chains):
        assert (chain[0], chain[-1]) == (source, target)
        assert all(row[b] == row[a] + 1 for a, b in pairwise(chain)) and len(chain) >= 3
    assert all(x - w / 2 >= -1e-6 and x + w / 2 <= at.width + 1e-6 for x, (w, _) in zip(at.x, sizes))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(10, 200), min_size=2, max_size=8))
def test_a_chain_is_one_straight_line(widths):
    count = len(widths)
    _, _, at = placed((count, list(pairwise(range(count))), [(w, 20.0) for w in widths]))
    assert max(at.x) - min(at.x) < 1e-6


def test_a_residual_edge_leaves_the_chain_straight():
    arranged, _, at = placed((5, [(0, 1), (1, 2), (2, 3), (3, 4), (0, 4)], [(80.0, 30.0)] * 5))
    assert max(at.x[:5]) - min(at.x[:5]) < 0.1
    side = [at.x[cell] for cell in arranged.chains[4][1:-1]]
    assert max(side) - min(side) < 0.1 and min(abs(x - at.x[0]) for x in side) > 40


def test_crossings_are_undone():
    # 0 and 1 lead crosswise to 3 and 2: exchanging two boxes is enough
    arranged = arrange(6, [(0, 3), (1, 2), (3, 4), (2, 5)], top=set(), bottom=set())
    down = {a: b for chain in arranged.chains for a, b in pairwise(chain)}
    for upper, lower in pairwise(arranged.layers):
        ends = [lower.index(down[cell]) for cell in upper if cell in down]
        assert ends == sorted(ends)


def test_ports_stand_on_the_border():
    arranged = arrange(4, [(0, 1), (1, 3), (2, 3)], top={0}, bottom={3})
    assert arranged.layers[0][0] == 0 and arranged.layers[-1] == [3]
