"""`Graph`: one graph whose nodes are classified, some of them labelled, read from its official files or your own.

Sources:
    karate     Zachary's karate club, carried by the package: 34 members, 78 pairs, no features, two classes
    cora, citeseer, pubmed   the citation networks in the files of Planetoid (Yang et al., 2016, arXiv 1603.08861),
               with its split: 20 papers a class to train on, 500 to choose by, 1,000 to test on
    packages   Debian's packages: see `etude.data.packages`
    file       your own, an .npz: x (N, F), edges (2, E) whole numbers, label (N,) with -1 for unknown, train and test
               (node numbers); and, if there are, validation, names (N,), classes (K,)

Planetoid's files are pickles of Python 2. Nothing here unpickles: they are executed by the machine of `etude.weights`,
which runs nothing that a file names, and arrays are taken out of its records.
"""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from etude.data import fetch, order, packages
from etude.data.base import Batch, Data, Dataset
from etude.errors import MissingError, RefusedError, UsageError, nearest
from etude.weights.pickle_machine import Inert, Machine, array

CITATIONS = {
    "cora": (
        *("theory", "reinforcement learning", "genetic algorithms", "neural networks", "probabilistic methods"),
        *("case-based", "rule learning"),
    ),
    "citeseer": (
        "agents",
        "AI",
        "databases",
        "information retrieval",
        "machine learning",
        "human-computer interaction",
    ),
    "pubmed": ("experimental diabetes", "type 1 diabetes", "type 2 diabetes"),
}
PLANETOID_VALIDATION = 500
LARGEST_FILE = 200_000_000
"""Bytes. Pubmed's largest has 6 million."""
LARGEST_MATRIX = 1 << 30
"""Features in all; of your own graph, also the numbers of each array."""
MOST_CLASSES = 100_000
ARRAYS = ("x", "edges", "label", "train", "validation", "test", "names", "classes")
PLANETOID_PARTS = ("x", "tx", "allx", "y", "ty", "ally", "graph")


@dataclass(frozen=True, eq=False)
class GraphArrays:
    """A graph in memory: x (N, F) float32, its rows summing to one, edges (2, E) int64 from source to target,
    label (N,) int64 with -1 for unknown, node numbers by split."""

    x: Tensor
    edges: Tensor
    label: Tensor
    names: tuple[str, ...]
    classes: tuple[str, ...]
    splits: dict[str, Tensor]


@dataclass(frozen=True)
class Graph(Data):
    """One graph, all of it known in training but for the labels of its other nodes (transductive learning)."""

    source: Literal["karate", "cora", "citeseer", "pubmed", "packages", "file"] = "karate"
    path: str = ""
    """The folder of Planetoid's files, for sets that etude did not fetch; your own .npz."""
    fanout: tuple[int, ...] = ()
    """Neighbours drawn a node at each step away from the nodes of a batch, e.g. (10, 10) for two layers (Hamilton et
    al., 2017, arXiv 1706.02216). Empty: messages pass over the whole graph."""

    def __post_init__(self) -> None:
        if any(count < 1 for count in self.fanout):
            raise UsageError(f"data.fanout is {self.fanout}; at least one neighbour must be drawn a step")
        if self.source == "file" and not self.path:
            raise UsageError("data.source file needs the .npz of your graph", hint="--data.path GRAPH.npz")

    def open(self) -> "GraphDataset":
        """Read the graph."""
        return GraphDataset(self)

    def prepare(self, raw: Any) -> Tensor:
        """A node's name or number -> its number, ()."""
        names = read(self.source, self.path).names
        if str(raw) in _places(names):
            return torch.tensor(_places(names)[str(raw)])
        if str(raw).isdecimal():
            if int(raw) < len(names):
                return torch.tensor(int(raw))
            raise UsageError(f"there is no node {raw}; they are numbered 0 to {len(names) - 1}")
        raise UsageError(
            f"there is no node {str(raw)!r}", hint=nearest(str(raw), names) or f"{names[0]}, {names[-1]}, ..."
        )

    def collate(self, samples: list[Tensor]) -> Batch:
        """Node numbers -> the whole graph, and these nodes as its targets."""
        graph = read(self.source, self.path)
        return {"x": graph.x, "edges": graph.edges, "target": torch.stack(samples)}


class GraphDataset(Dataset):
    """{"x": (N, F), "edges": (2, E), "target": (B,) rows of x to be classified, "label": (B,), "index": (B,)}.

    The samples are the labelled nodes of a split. Their batches cannot be cut into parts, as messages pass between all.
    """

    divisible = False

    def __init__(self, data: Graph):
        self.data, self.graph = data, read(data.source, data.path)
        self.sizes = {split: len(nodes) for split, nodes in self.graph.splits.items()}
        self.facts = {"source": data.source, "classes": list(self.graph.classes), "sizes": self.sizes}
        self.facts["fanout"] = list(data.fanout)
        self._here: dict[torch.device, Batch] = {}
        if data.fanout:
            self._sampler = Sampler(self.graph.edges.numpy(), len(self.graph.x))

    def fetch(self, split: str, indices: Sequence[int] | np.ndarray, *, epochs=None, seed: int = 0) -> Batch:
        """These nodes; in training with `fanout`, with the part of the graph that was drawn around them."""
        places = torch.from_numpy(np.asarray(indices, dtype=np.int64))
        nodes = self.graph.splits[split][places]
        batch = {"target": nodes, "label": self.graph.label[nodes], "index": places}
        if epochs is None or not self.data.fanout or not len(places):
            return batch
        epoch = int(np.min(epochs))
        around, edges, target = self._sampler.draw(nodes.numpy(), self.data.fanout, seed=seed, epoch=epoch)
        x = self.graph.x[torch.from_numpy(around)]
        return batch | {"x": x, "edges": torch.from_numpy(edges), "target": torch.from_numpy(target)}

    def finish(self, batch: Batch, *, seed: int = 0) -> Batch:
        """The whole graph, where none was drawn: the same tensors each time, as what is known of them is kept."""
        if "x" in batch:
            return batch
        device = batch["target"].device
        if device not in self._here:
            self._here[device] = {"x": self.graph.x.to(device), "edges": self.graph.edges.to(device)}
        return batch | self._here[device]

    def batch(self, *, seed: int, step: int, batch_size: int, rank: int = 0, world: int = 1) -> Batch:
        """This rank's share of the step's nodes; neighbours are drawn by the whole batch's first epoch on every rank,
        so that a node's do not depend on how many share the batch."""
        size = self.sizes["train"]
        start, count = order.rank_slice(step, batch_size, rank, world)
        _, indices = order.take(seed, size, start, count)
        return self.fetch("train", indices, epochs=np.full(count, step * batch_size // size), seed=seed)

    def samples(self, split: str, count: int) -> list[tuple[str, Any]]:
        """Nodes of the split, with their true classes."""
        graph, nodes = self.graph, self.graph.splits[split].tolist()
        count = min(count, len(nodes))
        chosen = [nodes[i * len(nodes) // count] for i in range(count)]
        return [(f"{graph.names[n]}, truly {graph.classes[int(graph.label[n])]}", graph.names[n]) for n in chosen]


class Sampler:
    """Draws the part of a graph around some nodes: what it draws follows from (seed, epoch, node) alone."""

    def __init__(self, edges: NDArray[np.int64], num_nodes: int):
        by_target = np.lexsort((edges[0], edges[1]))
        self.source = edges[0][by_target]
        self.rows = np.concatenate([[0], np.cumsum(np.bincount(edges[1], minlength=num_nodes))])
        self.num_nodes = num_nodes

    def draw(
        self, targets: NDArray[np.int64], fanout: Sequence[int], *, seed: int, epoch: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Nodes (n,), edges (2, e) between their places, and the places of the targets.

        At each step at most `fanout` different edges are drawn into every node that the step before found.
        """
        first, target = np.unique(targets, return_inverse=True)
        place = np.full(self.num_nodes, -1)
        place[first] = np.arange(len(first))
        nodes, edges, frontier = [first], [], first
        for count in fanout:
            if not len(frontier):
                break
            source, into = self._neighbours(frontier, count, seed, epoch)
            found = np.unique(source)
            frontier = found[place[found] < 0]
            place[frontier] = sum(map(len, nodes)) + np.arange(len(frontier))
            nodes.append(frontier)
            edges.append(np.stack([place[source], place[into]]))
        return np.concatenate(nodes), np.concatenate(edges, 1), target

    def _neighbours(self, nodes: NDArray[np.int64], count: int, seed: int, epoch: int):
        """Sources and targets of at most `count` edges into each node, none twice: Floyd's draw without replacement."""
        degree = self.rows[nodes + 1] - self.rows[nodes]
        uniform = order.uniform(seed, epoch, nodes, count, order.NEIGHBOURS)
        chosen = np.full((len(nodes), count), -1)
        for i in range(count):
            last = degree - count + i  # while a node has no more edges than are drawn: edge i itself
            drawn = (uniform[:, i] * (last + 1)).astype(np.int64)
            taken = (chosen == drawn[:, None]).any(1)
            chosen[:, i] = np.where(degree <= count, np.where(i < degree, i, -1), np.where(taken, last, drawn))
        row, column = np.nonzero(chosen >= 0)
        return self.source[self.rows[nodes[row]] + chosen[row, column]], nodes[row]


def read(source: str, path: str = "") -> GraphArrays:
    """The graph of this source, from `path` or from where `etude data get` put it, checked; kept while its files stay
    as they are.

    Raises MissingError if it is not there, RefusedError if a file is damaged, UsageError if the graph makes no sense.
    """
    if source == "karate":
        if path:
            raise UsageError("karate comes with the package and takes no path", hint="leave --data.path out")
        return _read(source, fetch.path(source), ())
    root = Path(path).expanduser() if path else fetch.path(source)
    if not root.exists():
        raise MissingError(f"{root}: there is no such file or folder", hint=f"give the place of {source}: --data.path")
    root = root.resolve()
    if source in CITATIONS:
        parts = [root / f"ind.{source}.{part}" for part in (*PLANETOID_PARTS, "test.index")]
        return _read(source, root, tuple(map(_stamp, parts)))
    file = root / packages.FILE if root.is_dir() else root
    return _read(source, file, (_stamp(file),))


def _stamp(file: Path) -> tuple[int, int]:
    """What changes when a file is written anew: its time and its size."""
    try:
        status = file.stat()
    except OSError:
        return (0, 0)
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=4)
def _read(source: str, place: Path, stamps: tuple[tuple[int, int], ...]) -> GraphArrays:
    if source == "karate":
        return read_karate(place)
    return read_planetoid(place, source) if source in CITATIONS else read_npz(place)


@lru_cache(maxsize=4)
def _places(names: tuple[str, ...]) -> dict[str, int]:
    return {name: i for i, name in enumerate(names)}


def read_karate(path: Path) -> GraphArrays:
    """Instructor and president are labelled; each member's only feature is to be this member, as in Kipf's paper."""
    lines = dict(line.split(":") for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    officers = torch.tensor([int(word) for word in lines.pop("officers").split()])
    pairs = torch.tensor([(int(a), int(b)) for a, others in lines.items() for b in others.split()]).T
    label = torch.zeros(34, dtype=torch.int64).index_fill(0, officers, 1)
    splits = {"train": torch.tensor([0, 33]), "test": torch.arange(1, 33)}
    names = tuple(map(str, range(34)))
    classes = ("instructor's club", "officers' club")
    return GraphArrays(torch.eye(34), torch.cat([pairs, pairs.flip(0)], 1), label, names, classes, splits)


def read_npz(path: Path) -> GraphArrays:
    """Your own graph. Features are divided by their row's sum, where that is positive."""
    held = _arrays(path)
    absent = [name for name in ("x", "edges", "label", "train", "test") if name not in held]
    if absent:
        raise UsageError(f"{path} lacks {', '.join(absent)}", hint="an .npz with x, edges, label, train and test")
    for name in ("edges", "label", "train", "validation", "test"):
        if name in held and held[name].dtype.kind not in "iu":
            raise UsageError(f"{path}: {name} holds {held[name].dtype}; it must hold whole numbers")
    x, label = held["x"], held["label"].astype(np.int64)
    if x.dtype.kind not in "iuf" or x.ndim != 2 or label.shape != x.shape[:1]:
        raise UsageError(
            f"{path}: x {x.shape} and label {label.shape} must have the shapes (N, F) and (N,), and x, of "
            f"{x.dtype}, must hold real numbers"
        )
    count = int(label.max(initial=-1)) + 1
    if count > MOST_CLASSES:
        raise UsageError(f"{path}: label holds {count - 1}; there may be {MOST_CLASSES:,} classes, numbered from 0")
    for name in ("names", "classes"):
        if name in held and held[name].ndim != 1:
            raise UsageError(f"{path}: {name} has the shape {held[name].shape}; it must be a list")
    names, classes = (
        tuple(map(str, held[name].tolist() if name in held else range(size)))
        for name, size in (("names", len(x)), ("classes", count))
    )
    splits = {name: held[name].astype(np.int64) for name in ("train", "validation", "test") if name in held}
    return checked(str(path), x, held["edges"].astype(np.int64), label, names, classes, splits)


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Those of `ARRAYS` that an .npz holds."""
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.file_size > 8 * LARGEST_MATRIX:
                    raise ValueError(f"{member.filename} unpacks to {member.file_size:,} bytes")
        with np.load(path, allow_pickle=False) as arrays:
            held = {name: arrays[name] for name in ARRAYS if name in arrays.files}
        for name, array in held.items():
            if not isinstance(array, np.ndarray):
                raise ValueError(f"{name} is no array")
            if array.size > LARGEST_MATRIX:
                raise ValueError(f"{name} holds {array.size:,} numbers, where {LARGEST_MATRIX:,} are the most")
    except FileNotFoundError:
        raise MissingError(f"{path}: there is no such file", hint="give your graph: --data.path GRAPH.npz") from None
    except Exception as error:  # whatever damaged or hostile content runs into, the file is refused
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RefusedError(f"{path}: not an .npz of arrays ({said})") from None
    return held


def checked(
    where: str,
    x: NDArray[Any],
    edges: NDArray[np.int64],
    label: NDArray[np.int64],
    names: tuple[str, ...],
    classes: tuple[str, ...],
    splits: dict[str, NDArray[np.int64]],
) -> GraphArrays:
    """The graph, the rows of features that are counts (none negative) made to sum to one. UsageError names the first
    node or edge that is amiss."""
    size = len(x)
    if len(names) != size or len(classes) <= label.max(initial=-1):
        raise UsageError(
            f"{where}: {len(names)} names and {len(classes)} classes do not fit {size} nodes and the labels"
        )
    bad = ~np.isfinite(x).all(1)
    if bad.any():
        raise UsageError(f"{where}: the features of node {names[int(bad.argmax())]} are not finite")
    if edges.ndim != 2 or len(edges) != 2:
        raise UsageError(f"{where}: edges have the shape {edges.shape}; it must be (2, E)")
    outside = ((edges < 0) | (edges >= size)).any(0)
    if outside.any():
        first = int(outside.argmax())
        ends = f"{edges[0, first]} and {edges[1, first]}"
        raise UsageError(f"{where}: edge {first} joins {ends}, in a graph of {size} nodes (0 to {size - 1})")
    if not (label >= 0).any():
        raise UsageError(f"{where}: no node has a label")
    for split, nodes in splits.items():
        wrong = (nodes < 0) | (nodes >= size)
        if nodes.ndim != 1 or not len(nodes) or wrong.any():
            said = f"it holds node {nodes[wrong][0]} of {size}" if wrong.any() else "it holds no list of nodes"
            raise UsageError(f"{where}: the split {split} is wrong: {said}")
        if (label[nodes] < 0).any():
            raise UsageError(f"{where}: node {names[nodes[label[nodes] < 0][0]]} of the split {split} has no label")
    if "test" in splits and (twice := np.intersect1d(splits["train"], splits["test"])).size:
        raise UsageError(f"{where}: node {names[twice[0]]} is in the splits train and test")
    if np.abs(x).max(initial=0) > np.finfo(np.float32).max:
        raise UsageError(f"{where}: a feature is {np.abs(x).max():.3g}, too large for float32")
    x = x.astype(np.float32)
    if (x >= 0).all():  # counts of words, as in the papers; other numbers are taken as they are
        sums = x.sum(1, keepdims=True)
        x = np.divide(x, sums, out=x, where=sums > 0)
    tensors = {split: torch.from_numpy(nodes) for split, nodes in splits.items()}
    return GraphArrays(torch.from_numpy(x), torch.from_numpy(edges), torch.from_numpy(label), names, classes, tensors)


def read_planetoid(root: Path, name: str) -> GraphArrays:
    """A citation network of Planetoid's eight files: allx holds the papers of known and of unknown label, the first of
    them x; tx those of the test, whose numbers in the graph are test.index."""
    x, tx, allx, y, ty, ally, graph = (read_pickle(root / f"ind.{name}.{part}") for part in PLANETOID_PARTS)
    where = f"{root}: ind.{name}"
    try:
        test = np.array(_there(root / f"ind.{name}.test.index").read_text().split(), dtype=np.int64)
        if not len(allx) == len(ally) <= test.min() or not len(tx) == len(ty) == len(test) or len(x) != len(y):
            raise ValueError("the files do not fit each other")
        size = int(test.max()) + 1  # Citeseer's test lacks 15 papers without citations: they stay zero and unlabelled
        features, onehot = np.zeros((size, allx.shape[1]), np.float32), np.zeros((size, ally.shape[1]), np.int64)
        features[: len(allx)], features[test] = allx, tx
        onehot[: len(ally)], onehot[test] = ally, ty
        pairs = {(a, b) for a, others in graph.items() for b in others}
        edges = np.array(sorted(pairs | {(b, a) for a, b in pairs}), dtype=np.int64).reshape(-1, 2).T
    except (ValueError, IndexError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise RefusedError(
            f"{where}.*: not Planetoid's files: {error}", hint="delete them and get them again"
        ) from error
    label = np.where(onehot.any(1), onehot.argmax(1), -1)
    train = np.arange(len(x))
    validation = np.arange(len(x), min(len(x) + PLANETOID_VALIDATION, len(allx)))
    splits = {"train": train, "validation": validation, "test": np.sort(test)}
    names = tuple(map(str, range(size)))
    return checked(where, features, edges, label, names, CITATIONS[name], splits)


def read_pickle(path: Path) -> Any:
    """One of Planetoid's pickles: a dense array, a sparse matrix made dense, or the dict of a graph."""
    size = _there(path).stat().st_size
    if size > LARGEST_FILE:
        raise RefusedError(f"{path}: {size} bytes, where at most {LARGEST_FILE} were expected")
    try:
        with open(path, "rb") as stream:
            machine = Machine(size, "inert")
            record = machine.run(stream)
        machine.check(record)
        if not isinstance(record, Inert):
            raise ValueError(f"it holds a {type(record).__name__}")
        if record.name == "collections.defaultdict":
            if any(type(node) is not int for key, others in record.items for node in (key, *others)):
                raise ValueError("a node in it is not a whole number")
            return dict(record.items)
        return (
            _sparse(record.state) if record.name.startswith("scipy.sparse") else array(record, ("i4", "i8", "f4", "f8"))
        )
    except Exception as error:  # whatever hostile or damaged instructions run into, the file is refused
        raise RefusedError(f"{path}: not a file of Planetoid's: {error}", hint="delete it and get it again") from error


def _there(path: Path) -> Path:
    if not path.is_file():
        raise MissingError(f"{path} is missing", hint="give the folder that holds the eight files: --data.path DIR")
    return path


def _sparse(state: dict[str, Any]) -> NDArray[np.float32]:
    """scipy's csr_matrix, by its attributes, as a dense array."""
    rows, columns = state["_shape"]
    if not (type(rows) is type(columns) is int and 0 <= rows * columns <= LARGEST_MATRIX) or min(rows, columns) < 0:
        raise ValueError(f"a matrix of shape {state['_shape']} is not allowed")
    indptr, indices = (array(state[part], ("i4", "i8")) for part in ("indptr", "indices"))
    values = array(state["data"], ("i4", "i8", "f4", "f8"))
    if len(indptr) != rows + 1 or indptr[0] != 0 or indptr[-1] != len(indices) or len(indices) != len(values):
        raise ValueError("a sparse matrix in it contradicts itself")
    dense = np.zeros((rows, columns), dtype=np.float32)
    if len(indices) and not 0 <= indices.min() <= indices.max() < columns:
        raise ValueError("a sparse matrix in it reaches outside its columns")
    np.add.at(dense, (np.repeat(np.arange(rows), np.diff(indptr)), indices), values)
    return dense
