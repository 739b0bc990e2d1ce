"""Operators grouped by the modules that called them: a drawing at every level, each a small graph of its own.

What crosses a module's border is a port: a tensor that comes in from outside, or one that is needed outside.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from etude.errors import UsageError, nearest
from etude.graph.trace import Call, Op, Trace, Value

LAYOUT = {
    *("view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "expand", "expand_as", "contiguous"),
    *("transpose", "swapaxes", "permute", "movedim", "t", "T", "mT", "unsqueeze", "squeeze"),
}
"""Operators that only say anew how the same numbers are laid out; a run of them is one box."""

INDICES = 4
"""So many operators on integers alone, in one module, are one box: no gradient flows through them."""

Kind = Literal["module", "operator", "input", "output", "port"]


@dataclass(eq=False)
class Item:
    """A box, or a port on the border."""

    kind: Kind
    name: str
    type: str = ""
    parameters: int = 0
    flops: int = 0
    path: str = ""
    detail: str = ""
    gradient: float | None = None
    """The norm of the gradient of its parameters."""
    inner: "Group | None" = None
    """What it holds, where that is more than one operator."""


@dataclass(eq=False)
class Edge:
    """A tensor on its way from one item of a group to another (indices into `Group.items`)."""

    source: int
    target: int
    value: Value
    gradient: float | None
    source_port: int = -1
    """Where the source holds a group: the port there that it leaves by (an index into that group's items)."""
    target_port: int = -1
    """Where the target holds a group: the port there that it enters by."""


@dataclass(eq=False)
class Group:
    """What a module call does, or the whole computation: items in the order in which they ran."""

    path: str
    label: str
    items: list[Item] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)
    number: int = 0
    """In the order of `groups()`."""

    def groups(self) -> Iterator["Group"]:
        """This one and all within it."""
        yield self
        for item in self.items:
            if item.inner is not None:
                yield from item.inner.groups()


def fold(trace: Trace) -> Group:
    """The whole computation, with the groups of its modules within."""
    root = _Folder(trace).root
    for number, group in enumerate(root.groups()):
        group.number = number
    return root


# -------------------------------------------------------------------- what is unfolded


ENOUGH = 6
"""A drawing of fewer boxes is unfolded further, where no depth is asked for."""


def to_depth(group: Group, depth: int) -> set[int]:
    """The numbers of the groups that are unfolded where `depth` levels of modules are seen; 1 unfolds none."""
    if depth <= 1:
        return set()
    inner = [item.inner for item in group.items if item.inner is not None]
    return {g.number for g in inner}.union(*(to_depth(g, depth - 1) for g in inner))


def usual(root: Group) -> set[int]:
    """What is unfolded by default: as few levels as show enough boxes."""
    depth, opened = 1, set()
    while len(boxes := shown(root, opened)[0]) < ENOUGH and boxes:
        further = to_depth(root, depth := depth + 1)
        if further == opened:
            break
        opened = further
    return opened


def named(root: Group, names: Iterable[str]) -> set[int]:
    """The groups of these modules (by name in the model, or by class) and all that they are within. UsageError names
    the nearest where one is unknown."""
    wanted, known, opened = set(names), set(), set()

    def visit(group: Group, around: tuple[int, ...]) -> None:
        for item in group.items:
            if item.inner is not None:
                known.update((item.path, item.type))
                if {item.path, item.type} & wanted:
                    opened.update((*around, item.inner.number))
                visit(item.inner, (*around, item.inner.number))

    visit(root, ())
    for name in wanted - known:
        hint = nearest(name, known) or f"one of {', '.join(sorted(known)[:12])}"
        raise UsageError(f"there is no module {name!r} to unfold", hint=hint if known else "--depth 1")
    return opened


def shown(root: Group, opened: set[int]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The boxes that are seen, and the edges between them, ports left out; as plain values."""
    nodes: list[dict[str, Any]] = []
    edges: list[dict[str, Any]] = []
    numbers: dict[Item, int] = {}

    def visit(group: Group) -> None:
        for item in group.items:
            if item.inner is not None and item.inner.number in opened:
                visit(item.inner)
            elif item.kind != "port":
                numbers[item] = len(nodes)
                facts = {"kind": item.kind, "name": item.name, "type": item.type, "path": item.path or group.path}
                facts |= {"parameters": item.parameters, "flops": item.flops, "gradient": item.gradient}
                nodes.append({"id": len(nodes), **facts})

    def source(group: Group, index: int, port: int) -> Item:
        item = group.items[index]
        if item not in numbers and item.inner is not None:
            inside = next(edge for edge in item.inner.edges if edge.target == port)
            return source(item.inner, inside.source, inside.source_port)
        return item

    def targets(group: Group, edge: Edge) -> Iterator[tuple[Item, Edge]]:
        item = group.items[edge.target]
        if item in numbers or item.inner is None:
            yield item, edge
            return
        for further in item.inner.edges:
            if further.source == edge.target_port:
                yield from targets(item.inner, further)

    visit(root)
    for group in root.groups():
        if group is root or group.number in opened:
            for edge in group.edges:
                if "port" in (group.items[edge.source].kind, group.items[edge.target].kind):
                    continue
                begin = numbers[source(group, edge.source, edge.source_port)]
                for item, last in targets(group, edge):
                    facts = {"shape": list(edge.value.shape), "dtype": edge.value.dtype, "gradient": last.gradient}
                    edges.append({"from": begin, "to": numbers[item], **facts})
    return nodes, edges


# -------------------------------------------------------------------- folding


class _Folder:
    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.places: dict[object, int] = {}
        """(group, call | op | port) -> index within the group."""
        self.root = Group("", "")
        self.groups: dict[Call, Group] = {trace.root: self.root}
        self.boxes: dict[Call, Item] = {}
        self.seen: set[tuple[Group, int, int, Value]] = set()
        self.homes = {op: op.call for op in trace.ops} | self._indices()
        merged = self._runs()
        for value in trace.inputs:
            self._place(self.root, value, Item("input", value.name or "input"))
        for op in trace.ops:
            group = self._group(self.homes[op])
            if merged[op] is op:
                run = [other.name for other in trace.ops if merged[other] is op] if op.name in LAYOUT else [op.name]
                box = self._place(group, op, Item("operator", _run_name(run), detail=" · ".join(run)))
            else:
                box = group.items[self.places[group, merged[op]]]
                self.places[group, op] = self.places[group, merged[op]]
            box.parameters += sum(op.parameters.values())
            box.flops += op.flops
            for call in self.homes[op].chain()[:-1]:
                self.boxes[call].flops += op.flops
        for op in trace.ops:
            for value in op.inputs:
                self._connect(value, op)
        for value in trace.outputs:
            loss = f"{value.name} {trace.loss:.4g}" if value.name == "loss" and trace.loss is not None else value.name
            self._place(self.root, ("output", value), Item("output", loss))
            self._connect(value, None)
        for call, item in self.boxes.items():
            self._sum_up(call, item)

    def _indices(self) -> dict[Op, Call]:
        """Operators that make integers of integers, and depend on inputs and each other alone: where they are many,
        they get a home of their own, as if a module had been called."""
        found: dict[Call, list[Op]] = {}
        gathered: set[Op] = set()
        for op in self.trace.ops:
            plain = all(v.dtype.startswith(("int", "uint", "bool")) for v in [*op.inputs, *op.outputs])
            ready = all(v.source is None or (v.source in gathered and v.source.call is op.call) for v in op.inputs)
            if plain and ready:
                gathered.add(op)
                found.setdefault(op.call, []).append(op)
        homes: dict[Op, Call] = {}
        for call, ops in found.items():
            if len(ops) >= INDICES:
                path = f"{call.path}.index arithmetic".removeprefix(".")
                home = Call(-1, path, "index arithmetic", None, call)
                homes |= dict.fromkeys(ops, home)
        return homes

    def _runs(self) -> dict[Op, Op]:
        """Each operator's first of the run of pure layout operators that it goes on with; itself elsewhere."""
        readers = Counter(value for op in self.trace.ops for value in op.inputs)
        first: dict[Op, Op] = {}
        for op in self.trace.ops:
            before = op.inputs[0].source if len(op.inputs) == 1 else None
            joins = (
                before is not None
                and {op.name, before.name} <= LAYOUT
                and self.homes[before] is self.homes[op]
                and readers[op.inputs[0]] == 1
                and op.inputs[0] not in self.trace.outputs
            )
            first[op] = first[before] if joins and before is not None else op
        return first

    def _group(self, call: Call) -> Group:
        if call not in self.groups:
            assert call.parent is not None
            parent = self._group(call.parent)
            detail = call.module.extra_repr() if call.module is not None else "operators on integers alone"
            item = Item("module", call.label, call.kind, path=call.path, detail=detail)
            item.inner = self.groups[call] = Group(call.path, call.label)
            self.boxes[call] = self._place(parent, call, item)
        return self.groups[call]

    def _place(self, group: Group, key: object, item: Item) -> Item:
        self.places[group, key] = len(group.items)
        group.items.append(item)
        return item

    def _port(self, group: Group, key: object, name: str) -> int:
        if (group, key) not in self.places:
            self._place(group, key, Item("port", name))
        return self.places[group, key]

    def _connect(self, value: Value, op: Op | None) -> None:
        """An edge in the innermost group that holds both ends, and from its ports on in the groups within it."""
        root = self.trace.root
        start = [*reversed(self.homes[value.source].chain())] if value.source else [root]
        end = [*reversed(self.homes[op].chain())] if op else [root]
        common = 0
        while common < min(len(start), len(end)) and start[common] is end[common]:
            common += 1
        sources = [*start[common:], value.source or value]
        targets = [*end[common:], op or ("output", value)]
        outs = [self._port(self.groups[call], ("out", value), "out") for call in start[common:]] + [-1]
        ins = [self._port(self.groups[call], ("in", value), "in") for call in end[common:]] + [-1]
        group = self.groups[start[common - 1]]
        source, target = self.places[group, sources[0]], self.places[group, targets[0]]
        self._edge(group, source, target, value, targets[0], outs[0], ins[0])
        for call, inner, port, further in zip(start[common:], sources[1:], outs, outs[1:]):
            group = self.groups[call]
            self._edge(group, self.places[group, inner], port, value, None, further, -1)
        for call, inner, port, further in zip(end[common:], targets[1:], ins, ins[1:]):
            group = self.groups[call]
            self._edge(group, port, self.places[group, inner], value, inner, -1, further)

    def _edge(
        self, group: Group, source: int, target: int, value: Value, consumer: object, leaves: int, enters: int
    ) -> None:
        key = (group, source, target, value)
        if key not in self.seen and source != target:
            self.seen.add(key)
            to = consumer if isinstance(consumer, Op | Call) else None
            group.edges.append(Edge(source, target, value, self.trace.gradient(value, to), leaves, enters))

    def _sum_up(self, call: Call, item: Item) -> None:
        if call.module is not None:
            names = {f"{call.path}.{name}" for name, _ in call.module.named_parameters()}
            item.parameters = sum(p.numel() for p in call.module.parameters())
            norms = [self.trace.weights[name] for name in names if name in self.trace.weights]
            item.gradient = sum(norm**2 for norm in norms) ** 0.5 if norms else None
        if item.inner is not None and sum(inner.kind != "port" for inner in item.inner.items) == 1:
            only = next(inner for inner in item.inner.items if inner.kind != "port")
            if only.kind == "operator":  # a layer of one operator is that operator
                item.inner = None


def _run_name(run: list[str]) -> str:
    return run[0] if len(run) == 1 else " · ".join(run) if len(run) == 2 else f"layout ({len(run)} operators)"
