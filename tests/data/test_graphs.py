"""Graphs: official files read without unpickling, Debian's packages made from a list, neighbours drawn by counter."""

import contextlib
import lzma
import os
import pickle
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from etude.data import fetch, graphs, packages, remotes
from etude.data.graphs import Graph, Sampler, read, read_pickle
from etude.errors import MissingError, RefusedError, UsageError

RNG = np.random.default_rng(0)


def write_planetoid(folder: Path, name: str, per_class: int = 2, isolated: bool = False) -> dict[str, Any]:
    """The eight files in the official format, protocol 2: features that tell the class, edges within classes.

    With `isolated`, a number of the test is skipped, as Citeseer's are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    classes = len(graphs.CITATIONS[name])
    known, tests = per_class * classes, 3 * classes
    others = 5 * classes
    label = np.arange(known + others + tests) % classes
    x = np.zeros((len(label), classes + 1), np.float32)
    x[np.arange(len(label)), label] = 2
    x[:, -1] = RNG.integers(0, 2, len(label))
    first = known + others
    numbers = RNG.permutation(np.arange(first, first + tests + isolated))
    numbers = numbers[numbers != first + 1] if isolated else numbers
    y = np.eye(classes, dtype=np.int32)[label]
    graph = defaultdict(list)
    for node in range(first + tests + isolated):
        graph[node] = [(node + classes) % first, (node + 2 * classes) % first]
    graph[0].append(graph[0][0])  # once more, and a loop
    graph[1].append(1)
    parts = {
        "x": csr_matrix(x[:known]), "allx": csr_matrix(x[:first]), "tx": csr_matrix(x[first:]),
        "y": y[:known], "ally": y[:first], "ty": y[first:], "graph": graph,
    }  # fmt: skip
    for part, content in parts.items():
        raw = pickle.dumps(content, protocol=2).replace(b"cscipy.sparse._csr\n", b"cscipy.sparse.csr\n")
        (folder / f"ind.{name}.{part}").write_bytes(raw)
    (folder / f"ind.{name}.test.index").write_text("".join(f"{n}\n" for n in numbers))
    return {"x": x, "label": label, "numbers": numbers, "first": first, "known": known, "graph": graph}


def save(path: Path, **changes: Any) -> Path:
    """A graph of six nodes and two classes, with changes; None leaves an array out."""
    arrays = {
        "x": np.eye(6, 4), "edges": np.array([[0, 1, 2, 3], [1, 2, 0, 4]]), "label": np.array([0, 1, 0, 1, -1, 1]),
        "train": np.array([0, 1]), "validation": np.array([2]), "test": np.array([3, 5]),
        "names": np.array(list("abcdef")),
    } | changes  # fmt: skip
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


@pytest.mark.parametrize("name", ["cora", "citeseer", "pubmed"])
@pytest.mark.parametrize("isolated", [False, True])
def test_planetoid_files_are_read(name, isolated, tmp_path):
    told = write_planetoid(tmp_path, name, isolated=isolated)
    graph = read(name, str(tmp_path))
    first, numbers = told["first"], told["numbers"]
    assert len(graph.x) == first + len(numbers) + isolated
    rows = told["x"] / told["x"].sum(1, keepdims=True)
    torch.testing.assert_close(graph.x[:first], torch.from_numpy(rows[:first]))
    torch.testing.assert_close(graph.x[torch.from_numpy(numbers)], torch.from_numpy(rows[first:]))
    assert graph.label[:first].tolist() == told["label"][:first].tolist()
    assert graph.label[torch.from_numpy(numbers)].tolist() == told["label"][first:].tolist()
    if isolated:
        assert not graph.x[first + 1].any() and graph.label[first + 1] == -1
    pairs = {(a, b) for a, others in told["graph"].items() for b in others}
    expected = sorted(pairs | {(b, a) for a, b in pairs})
    assert graph.edges.T.tolist() == [list(pair) for pair in expected]  # both ways, none twice
    assert graph.splits["train"].tolist() == list(range(told["known"]))
    assert graph.splits["validation"].tolist() == list(range(told["known"], first))
    assert graph.splits["test"].tolist() == sorted(numbers.tolist())


def test_what_a_pickle_names_is_never_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.system, (f"touch {tmp_path / 'owned'}",))

    write_planetoid(tmp_path, "cora")
    for content in (Evil(), {0: Evil()}, np.array([Evil()], dtype=object), [1], "text"):
        (tmp_path / "ind.cora.allx").write_bytes(pickle.dumps(content, protocol=2))
        with pytest.raises(RefusedError, match=r"ind\.cora\.allx: not a file of Planetoid's"):
            graphs.read_planetoid(tmp_path, "cora")
    assert not (tmp_path / "owned").exists()


def sparse(**changes: Any) -> csr_matrix:
    matrix = csr_matrix(np.eye(3, dtype=np.float32))
    for name, value in changes.items():
        setattr(matrix, name, value)
    return matrix


@pytest.mark.parametrize(
    "content",
    [
        sparse(indices=np.array([0, 1, 9], np.int32)),
        sparse(indices=np.array([0, 1, -1], np.int32)),
        sparse(indptr=np.array([0, 1, 2, 7], np.int32)),
        sparse(indptr=np.array([0, 5, 2, 3], np.int32)),
        sparse(_shape=(3, 1 << 40)),
        sparse(_shape=(-3, -3)),
        np.array([1 + 2j]),
        np.array(["a"]),
        defaultdict(list, {0: ["a"]}),
        defaultdict(list, {0: 5}),
    ],
)
def test_damaged_content_is_refused(content, tmp_path):
    (tmp_path / "part").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(RefusedError, match="not a file of Planetoid's"):
        read_pickle(tmp_path / "part")


def test_damaged_files_are_refused(tmp_path):
    write_planetoid(tmp_path, "cora")
    whole = (tmp_path / "ind.cora.tx").read_bytes()
    for cut in range(0, len(whole), 37):
        (tmp_path / "ind.cora.tx").write_bytes(whole[:cut])
        with pytest.raises(RefusedError):
            graphs.read_planetoid(tmp_path, "cora")
    (tmp_path / "ind.cora.tx").write_bytes(whole)
    (tmp_path / "ind.cora.test.index").write_text("1 2 x")
    with pytest.raises(RefusedError, match="not Planetoid's files"):
        graphs.read_planetoid(tmp_path, "cora")
    (tmp_path / "ind.cora.test.index").unlink()
    with pytest.raises(MissingError, match=r"test\.index is missing"):
        graphs.read_planetoid(tmp_path, "cora")


def test_missing_sets_name_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("ETUDE_HOME", str(tmp_path))
    for name in ("packages", "cora"):
        with pytest.raises(MissingError) as caught:
            Graph(source=name).open()
        assert caught.value.hint == f"etude data get {name}" and caught.value.code == 3
    with pytest.raises(MissingError, match="no such file or folder"):
        Graph(source="packages", path=str(tmp_path / "nowhere")).open()
    with pytest.raises(UsageError, match="takes no path"):
        Graph(source="karate", path=str(tmp_path)).open()


def test_the_karate_club_is_networkx_graph():
    networkx = pytest.importorskip("networkx")
    club, graph = networkx.karate_club_graph(), read("karate")
    assert {tuple(pair) for pair in graph.edges.T.tolist()} == {p for a, b in club.edges for p in ((a, b), (b, a))}
    assert graph.edges.shape == (2, 156)
    assert [graph.classes[i] == "officers' club" for i in graph.label] == [
        club.nodes[n]["club"] == "Officer" for n in range(34)
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edges": np.array([[0, 1], [1, 6]])}, "edge 1 joins 1 and 6, in a graph of 6 nodes"),
        ({"edges": np.array([[0, -1], [1, 2]])}, "edge 1 joins -1 and 2"),
        ({"edges": np.array([0, 1])}, r"edges have the shape \(2,\)"),
        ({"edges": np.array([[0.5], [1.0]])}, "edges holds float64; it must hold whole numbers"),
        ({"x": np.where(np.arange(6)[:, None] == 4, np.nan, np.eye(6, 4))}, "the features of node e are not finite"),
        ({"label": np.full(6, -1)}, "no node has a label"),
        ({"label": np.zeros(5, int)}, r"x \(6, 4\) and label \(5,\)"),
        ({"train": np.array([4])}, "node e of the split train has no label"),
        ({"train": np.array([], int)}, "the split train is wrong: it holds no list of nodes"),
        ({"test": np.array([6])}, "the split test is wrong: it holds node 6 of 6"),
        ({"x": None, "test": None}, "lacks x, test"),
        ({"names": np.array(["a"])}, "1 names and 2 classes do not fit 6 nodes"),
        ({"classes": np.array(["one"])}, "6 names and 1 classes do not fit"),
        (
            {"names": np.array(["a"]), "x": np.where(np.arange(6)[:, None] == 4, np.nan, np.eye(6, 4))},
            "1 names and 2 classes do not fit 6 nodes",
        ),
        ({"names": np.array("a")}, r"names has the shape \(\); it must be a list"),
        ({"x": np.eye(6, 4) * 1j}, "x, of complex128, must hold real numbers"),
        ({"train": np.array(0)}, "the split train is wrong: it holds no list of nodes"),
        ({"label": np.array([0, 1, 0, 1, -1, 10**15])}, "label holds 1000000000000000; there may be 100,000 classes"),
    ],
)
def test_bad_graphs_are_named(changes, message, tmp_path):
    path = save(tmp_path / "g.npz", **changes)
    with pytest.raises(UsageError, match=message):
        Graph(source="file", path=str(path)).open()


def test_files_that_are_no_graph(tmp_path):
    path = tmp_path / "g.npz"
    path.write_bytes(b"no zip")
    with pytest.raises(RefusedError, match=r"not an \.npz"):
        graphs.read_npz(path)
    np.savez(path, x=np.array([{}], dtype=object))
    with pytest.raises(RefusedError, match=r"not an \.npz"):
        graphs.read_npz(path)
    np.save(tmp_path / "one.npy", np.eye(3))
    with pytest.raises(RefusedError, match=r"not an \.npz"):
        graphs.read_npz(tmp_path / "one.npy")
    with pytest.raises(UsageError, match=r"needs the \.npz of your graph"):
        Graph(source="file")
    with pytest.raises(UsageError, match="at least one neighbour"):
        Graph(fanout=(10, 0))


def test_damaged_npz_is_refused(tmp_path):
    """Cut anywhere, or any byte of its members' content flipped: one line, no traceback."""
    path = save(tmp_path / "g.npz")
    with np.load(path) as arrays:
        held = dict(arrays)
    np.savez_compressed(path, **held)
    whole = path.read_bytes()
    for cut in range(0, len(whole), 41):
        path.write_bytes(whole[:cut])
        with pytest.raises(RefusedError, match=r"not an \.npz of arrays \(.+\)$"):
            graphs.read_npz(path)
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with contextlib.suppress(RefusedError, UsageError):
            graphs.read_npz(path)  # a date or the like


def test_an_npz_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "g.npz"
    np.savez_compressed(path, x=np.zeros((1000, 100)))
    monkeypatch.setattr(graphs, "LARGEST_MATRIX", 10_000)
    with pytest.raises(RefusedError, match=r"x\.npy unpacks to 800,128 bytes"):
        graphs.read_npz(path)
    np.savez_compressed(path, x=np.zeros((1000, 70), np.int8))
    with pytest.raises(RefusedError, match="x holds 70,000 numbers, where 10,000 are the most"):
        graphs.read_npz(path)


def test_a_graph_is_read_again_when_its_file_or_place_changes(tmp_path, monkeypatch):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    path = save(tmp_path / "one" / "g.npz")
    save(tmp_path / "two" / "g.npz", names=np.array(list("uvwxyz")))
    assert read("file", str(path)) is read("file", str(path))
    monkeypatch.chdir(tmp_path / "one")
    assert read("file", "g.npz") is read("file", str(path))
    monkeypatch.chdir(tmp_path / "two")
    assert read("file", "g.npz").names[0] == "u"
    save(path, names=np.array(list("ghijkl")))
    assert read("file", str(path)).names[0] == "g"
    homes = [tmp_path / "home1", tmp_path / "home2"]
    for home, count in zip(homes, (2, 3)):
        write_planetoid(home / "cora", "cora", per_class=count)
    sizes = []
    for home in homes:
        monkeypatch.setattr(fetch, "path", lambda name, home=home: home / name)
        sizes.append(len(read("cora").splits["train"]))
    assert sizes == [14, 21]


def test_your_own_graph(tmp_path):
    data = Graph(source="file", path=str(save(tmp_path / "g.npz")))
    dataset = data.open()
    assert dataset.sizes == {"train": 2, "validation": 1, "test": 2} and dataset.facts["classes"] == ["0", "1"]
    batch = dataset.finish(dataset.fetch("test", [1, 0]))
    assert (
        batch["target"].tolist() == [5, 3] and batch["label"].tolist() == [1, 1] and batch["index"].tolist() == [1, 0]
    )
    assert batch["x"].shape == (6, 4) and batch["edges"].shape == (2, 4)
    assert dataset.finish(dataset.fetch("test", [0]))["edges"] is batch["edges"]
    assert dataset.samples("test", 9) == [("d, truly 1", "d"), ("f, truly 1", "f")]
    assert data.prepare("c").item() == 2 and data.prepare("4").item() == 4 and data.prepare(5).item() == 5
    for raw, message, hint in (("6", "numbered 0 to 5", ""), ("bb", "no node 'bb'", "did you mean b?")):
        with pytest.raises(UsageError, match=message) as caught:
            data.prepare(raw)
        assert caught.value.hint == hint


def test_a_full_batch_holds_every_labelled_node():
    dataset = Graph().open()
    for step in range(3):
        batch = dataset.batch(seed=1, step=step, batch_size=2)
        assert sorted(batch["target"].tolist()) == [0, 33]


LISTING = """Package: {name}
Section: {section}
Depends: {depends}
Description: {text}

"""


def listing(count: int) -> list[str]:
    """Packages of each section in a chain, with an alternative, versions and a package of another section."""
    lines = ["Package: libc6\n", "Section: libs\n", "Description: the C library\n", "\n"]
    for section in packages.SECTIONS:
        for i in range(count):
            depends = f"libc6 (>= 2.1), {section}{i - 1}:any (= 1.0) | {section}{i + 1}" if i else "libc6"
            text = f"program for {section} with words\n that go on in the long part"
            said = LISTING.format(
                name=f"{section}{i}", section=f"contrib/{section}" if i % 2 else section, depends=depends, text=text
            )
            lines += said.splitlines(keepends=True)
    return lines


def test_packages_are_made_of_a_list(tmp_path, monkeypatch):
    monkeypatch.setenv("ETUDE_HOME", str(tmp_path))
    monkeypatch.setattr(packages, "from_apt", lambda: iter(listing(240)))
    folder = fetch.get("packages", offline=False)
    assert fetch.status("packages").state == "here"
    fetch.verify("packages")
    graph = read("packages", str(folder))
    assert len(graph.x) == 7 * 240 and set(graph.names) == {f"{s}{i}" for s in packages.SECTIONS for i in range(240)}
    pairs = {tuple(sorted((graph.names[a], graph.names[b]))) for a, b in graph.edges.T.tolist()}
    assert pairs == {tuple(sorted((f"{s}{i}", f"{s}{i + 1}"))) for s in packages.SECTIONS for i in range(239)}
    assert graph.edges.shape[1] == 2 * len(pairs)
    assert all(name.startswith(graph.classes[label]) for name, label in zip(graph.names, graph.label))
    with np.load(folder / packages.FILE) as arrays:  # "for" and "with" say nothing, the long part is not read
        assert set(arrays["words"]) == {"program", "words", *packages.SECTIONS}
    sizes = {split: len(nodes) for split, nodes in graph.splits.items()}
    assert sizes == {"train": 140, "validation": 500, "test": 1000}
    assert torch.cat(list(graph.splits.values())).unique().numel() == 1640
    assert graph.label[graph.splits["train"]].bincount().tolist() == [20] * 7
    first = (folder / packages.FILE).read_bytes()
    packages.build(listing(240), tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == first


def test_packages_are_made_offline_of_what_is_here(tmp_path, monkeypatch):
    def forbidden() -> Any:
        raise AssertionError("a connection")

    monkeypatch.setenv("ETUDE_HOME", str(tmp_path))
    monkeypatch.setenv("ETUDE_OFFLINE", "1")
    monkeypatch.setattr(packages, "from_archive", forbidden)
    monkeypatch.setattr(packages, "from_apt", lambda: iter([]))
    with pytest.raises(MissingError, match="name only 0 packages"):
        fetch.get("packages")
    with pytest.raises(MissingError, match="ETUDE_OFFLINE is set"):
        fetch.get("packages", source="official")
    monkeypatch.setattr(packages, "from_apt", lambda: iter(listing(240)))
    assert (fetch.get("packages") / packages.FILE).is_file()


def test_a_short_list_is_refused(tmp_path):
    with pytest.raises(MissingError, match="name only 70 packages"):
        packages.build(listing(10), tmp_path / "x.npz")
    with pytest.raises(MissingError, match="name only 0 packages"):
        packages.build([], tmp_path / "x.npz")


def test_the_archive_is_read(tmp_path):
    index = tmp_path / "Packages.xz"
    index.write_bytes(lzma.compress("".join(listing(3)).encode()))
    assert list(packages.from_archive(index.as_uri())) == listing(3)
    index.write_bytes(b"no xz")
    with pytest.raises(MissingError, match="cannot be read"):
        list(packages.from_archive(index.as_uri()))


def test_apt_that_fails_or_is_absent(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingError, match="no apt-cache on this machine"):
        list(packages.from_apt())
    (tmp_path / "apt-cache").write_text("#!/bin/sh\necho Package: a\nexit 3\n")
    (tmp_path / "apt-cache").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(MissingError, match="dumpavail` failed"):
        list(packages.from_apt())


def test_relations():
    assert packages.named("a (>= 1), b:any | c, d [amd64] <!nocheck>") == ["a", "b", "c", "d"]
    assert packages.named("") == []


EDGES = RNG.integers(0, 40, (2, 300))


@settings(max_examples=40, deadline=None)
@given(
    targets=st.lists(st.integers(0, 39), min_size=1, max_size=8),
    fanout=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    seed=st.integers(0, 3),
)
def test_drawn_neighbours(targets, fanout, seed):
    """The edges drawn are edges of the graph, none more often than it is there; each node that a step found has as many
    as it has or the step draws; the same arguments draw the same; a node's do not depend on the other targets."""
    sampler = Sampler(EDGES, 41)
    nodes, edges, place = sampler.draw(np.array(targets), fanout, seed=seed, epoch=2)
    assert nodes[place].tolist() == targets and len(set(nodes.tolist())) == len(nodes)
    there = {}
    for pair in EDGES.T.tolist():
        there[tuple(pair)] = there.get(tuple(pair), 0) + 1
    drawn = [tuple(pair) for pair in nodes[edges].T.tolist()]
    assert all(drawn.count(pair) <= there.get(pair, 0) for pair in set(drawn))
    frontier, seen = set(targets), set(targets)
    for count in fanout:
        for node in frontier:
            degree = int((EDGES[1] == node).sum())
            assert sum(b == node for _, b in drawn) == min(count, degree)
        frontier = {a for a, b in drawn if b in frontier} - seen
        seen |= frontier
    assert seen == set(nodes.tolist())
    for a, b in zip(sampler.draw(np.array(targets), fanout, seed=seed, epoch=2), (nodes, edges, place)):
        assert np.array_equal(a, b)
    alone, together = (sampler.draw(np.array(some), fanout[:1], seed=seed, epoch=2) for some in (targets[:1], targets))
    into_first = [sorted(p for p in map(tuple, n[e].T.tolist()) if p[1] == targets[0]) for n, e, _ in (alone, together)]
    assert into_first[0] == into_first[1]


def test_draws_are_even():
    """Each of a node's ten edges comes in three of ten draws."""
    edges = np.stack([np.arange(1, 11), np.zeros(10, int)])
    sampler = Sampler(edges, 11)
    counts = np.zeros(11)
    for epoch in range(2000):
        nodes, drawn, _ = sampler.draw(np.array([0]), (3,), seed=0, epoch=epoch)
        counts[nodes[drawn[0]]] += 1
    assert np.abs(counts[1:] / 2000 - 0.3).max() < 4 * (0.21 / 2000) ** 0.5


def test_sampled_batches_are_parts_of_the_graph(tmp_path):
    write_planetoid(tmp_path, "cora")
    data = Graph(source="cora", path=str(tmp_path), fanout=(3, 2))
    dataset = data.open()
    for step in range(4):
        batch = dataset.finish(dataset.batch(seed=0, step=step, batch_size=5))
        again = data.open().batch(seed=0, step=step, batch_size=5)
        assert all(torch.equal(batch[name], again[name]) for name in batch)
        nodes = dataset.graph.splits["train"][batch["index"]]
        assert torch.equal(batch["x"][batch["target"]], dataset.graph.x[nodes])
        assert torch.equal(batch["label"], dataset.graph.label[nodes])
        assert batch["edges"].max() < len(batch["x"]) < len(dataset.graph.x)
    evaluated = dataset.finish(dataset.fetch("test", [0, 1]))
    assert len(evaluated["x"]) == len(dataset.graph.x)


def test_two_ranks_draw_what_one_draws(tmp_path):
    """The edges of two ranks' batches are together those of the whole batch, also where it straddles two epochs."""
    write_planetoid(tmp_path, "cora", per_class=3)
    dataset = Graph(source="cora", path=str(tmp_path), fanout=(1, 1)).open()
    dataset.graph.x[:] = torch.arange(len(dataset.graph.x))[:, None]  # tells which node a row is
    straddled = 0

    def edges(step: int, **share: int) -> set[tuple[int, int]]:
        batch = dataset.batch(seed=0, step=step, batch_size=8, **share)
        return set(map(tuple, batch["x"][:, 0].long()[batch["edges"]].T.tolist()))

    for step in range(12):
        assert edges(step) == edges(step, rank=0, world=2) | edges(step, rank=1, world=2)
        straddled += step * 8 // 21 != (step * 8 + 4) // 21
    assert straddled


def test_the_sizes_that_are_known_are_those_of_the_official_files():
    for name in ("cora", "citeseer"):
        files = remotes.REMOTES[name].files
        assert len(files) == 8 and all(re.fullmatch(r"[0-9a-f]{64}", file.sha256) for file in files)
