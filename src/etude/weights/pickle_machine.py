"""A machine that executes pickles without running anything in them: no unpickler, no import, no call by name.

A pickle is a program for a stack machine, and pickle's own machine calls any function that the program names. This one
looks the name up in a short table of its own functions, and refuses the file if it is not there. So what comes out are
tensors, numbers, strings, bytes and containers of these, whatever the file asks for. All that it claims is checked
against the size of the file: no tensor reaches outside its storage, no count makes memory run out.
"""

import math
import pickletools
import struct
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from etude.errors import RefusedError

MAX_INSTRUCTIONS = 4_000_000  # a thousand tensors take 40,000
MAX_DEPTH = 200  # containers within containers
MAX_EXPANDED = 1 << 20  # elements that a tensor of overlapping strides may show in a smaller file

STORAGES = {
    f"torch.{name}": dtype
    for name, dtype in {
        "DoubleStorage": torch.float64,
        "FloatStorage": torch.float32,
        "HalfStorage": torch.float16,
        "BFloat16Storage": torch.bfloat16,
        "LongStorage": torch.int64,
        "IntStorage": torch.int32,
        "ShortStorage": torch.int16,
        "CharStorage": torch.int8,
        "ByteStorage": torch.uint8,
        "BoolStorage": torch.bool,
        "ComplexFloatStorage": torch.complex64,
        "ComplexDoubleStorage": torch.complex128,
        "storage.UntypedStorage": torch.uint8,
    }.items()
}
# Types younger than the storage classes: their tensors name them beside an untyped storage.
DTYPES = {
    f"torch.{name}": getattr(torch, name) for name in ("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2")
}
INSTRUCTIONS = {opcode.code.encode("latin1"): opcode.name for opcode in pickletools.opcodes}
FIXED = {
    # instructions with a number behind them, as struct reads it
    name: format
    for format, names in {
        "<B": ("PROTO", "BININT1", "BINPUT", "BINGET"),
        "<H": ("BININT2",),
        "<I": ("LONG_BINPUT", "LONG_BINGET"),
        "<i": ("BININT",),
        "<Q": ("FRAME",),
        ">d": ("BINFLOAT",),
    }.items()
    for name in names
}
COUNTED = {
    # instructions with a count and as many bytes behind them
    name: format
    for format, names in {
        "<B": ("LONG1", "SHORT_BINSTRING", "SHORT_BINUNICODE", "SHORT_BINBYTES"),
        "<I": ("LONG4", "BINSTRING", "BINUNICODE", "BINBYTES"),
        "<Q": ("BINUNICODE8", "BINBYTES8", "BYTEARRAY8"),
    }.items()
    for name in names
}
SCALARS = (str, int, float, bool, bytes, type(None))


class Name(NamedTuple):
    """A function or class that the file names."""

    name: str


@dataclass
class Inert:
    """An object that the file asked to build, as a record: nothing of its class was imported or run."""

    name: str
    args: tuple
    state: Any = None
    items: list = field(default_factory=list)


@dataclass
class Storage:
    """Memory that tensors of the file share: bytes that are filled after the tensors are laid out over them."""

    raw: Tensor
    dtype: torch.dtype
    max_numel: int
    """How many elements a tensor in this file may show."""


def hashable(keys: Any) -> list[Any]:
    """Keys of dicts and items of sets: scalars only, whose hash costs nothing (a nested tuple's can take forever)."""
    for key in keys:
        if not isinstance(key, SCALARS):
            raise RefusedError(f"it uses a {type(key).__name__} as a key")
    return list(keys)


def integers(values: Any) -> tuple[int, ...]:
    """Sizes, strides and offsets: none negative, none beyond 62 bits."""
    if not isinstance(values, tuple | list) or not all(type(n) is int and 0 <= n < 1 << 62 for n in values):
        raise RefusedError("a tensor has a shape, stride or offset that none can have")
    return tuple(values)


def view(storage: Any, offset: Any, size: Any, stride: Any, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor over a storage, with every element inside it."""
    if not isinstance(storage, Storage):
        raise RefusedError("it builds a tensor of something else than a storage")
    (offset,), size, stride = integers((offset,)), integers(size), integers(stride)
    if len(size) > 64 or math.prod(max(n, 1) for n in size) > storage.max_numel:
        raise RefusedError(f"a tensor of shape {size[:8]} is too large for the file")
    flat = storage.raw.view(dtype or storage.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if offset > len(flat) or (0 not in size and last >= len(flat)):
        raise RefusedError(f"a tensor of shape {size} reaches outside its storage of {len(flat)} elements")
    return flat.as_strided(size, stride, offset)


def build_tensor(storage: Any, offset: Any, size: Any, stride: Any, grad: Any = False, *hooks: Any) -> Tensor:
    """`hooks` are an empty OrderedDict, and maybe the marks of a lazily conjugated view."""
    if any(hooks):
        raise RefusedError("a tensor in it has hooks or is a lazily conjugated view")
    return view(storage, offset, size, stride)


def build_typed_tensor(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *marks: Any
) -> Tensor:
    if hooks or any(marks) or not isinstance(dtype, Name):
        raise RefusedError("a tensor in it has hooks, marks or no type")
    return view(storage, offset, size, stride, DTYPES[dtype.name])


def build_parameter(data: Any, *rest: Any) -> Tensor:
    """nn.Parameter(data); whether it requires a gradient, and its hooks, are not read."""
    if not isinstance(data, Tensor):
        raise RefusedError("it makes a parameter of something else than a tensor")
    return data


def build_ordered_dict(pairs: Any = ()) -> OrderedDict:
    pairs = [(key, value) for key, value in pairs]
    return OrderedDict(zip(hashable([key for key, _ in pairs]), [value for _, value in pairs]))


def build_size(sizes: Any) -> torch.Size:
    return torch.Size(integers(sizes))


def build_set(items: Any) -> set:
    return set(hashable(items))


def build_frozenset(items: Any) -> frozenset:
    return frozenset(hashable(items))


def build_complex(real: Any, imaginary: Any) -> complex:
    if type(real) is not float or type(imaginary) is not float:
        raise RefusedError("a complex number in it is not made of two numbers")
    return complex(real, imaginary)


def build_bytes(text: Any = "", encoding: str = "latin1") -> bytes:
    """As the second protocol stores bytes: characters of Latin 1."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise RefusedError("bytes in it are not stored as bytes")
    return text.encode("latin1")


def build_bytearray(data: Any = b"", *encoding: str) -> bytearray:
    return bytearray(data if type(data) is bytes else build_bytes(data, *encoding))


BUILDERS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": build_tensor,
    "torch._utils._rebuild_tensor_v2": build_tensor,
    "torch._utils._rebuild_tensor_v3": build_typed_tensor,
    "torch._utils._rebuild_parameter": build_parameter,
    "torch._utils._rebuild_parameter_with_state": build_parameter,
    "torch.Size": build_size,
    "collections.OrderedDict": build_ordered_dict,
    "builtins.set": build_set,
    "builtins.frozenset": build_frozenset,
    "builtins.complex": build_complex,
    "builtins.bytes": build_bytes,
    "builtins.bytearray": build_bytearray,
    "_codecs.encode": build_bytes,
}


class Machine:
    """Executes pickles of one file. Its storages are laid out as tensors name them, and filled by the caller."""

    def __init__(self, file_size: int, objects: Literal["refuse", "inert"]):
        self.file_size = file_size
        self.inert = objects == "inert"
        self.storages: dict[str, Storage] = {}
        self.unclaimed = file_size
        self.instructions = 0

    def run(self, stream: BinaryIO) -> Any:
        """Execute one pickle, up to and including its STOP; the stream is left just behind it.

        Instructions that pickle writes only in its textual protocols, 0 and 1, are unknown here: torch.save uses 2.
        """
        stack: list[Any] = []
        marks: list[int] = []
        memo: dict[int, Any] = {}

        def since_mark() -> list[Any]:
            start = marks.pop()
            items = stack[start:]
            del stack[start:]
            return items

        while True:
            self.instructions += 1
            if self.instructions > MAX_INSTRUCTIONS:
                raise RefusedError("its pickle is too long")
            match INSTRUCTIONS[take(stream, 1)]:
                case "STOP":
                    return stack.pop()
                case "PROTO" | "FRAME" as number:
                    take_number(stream, FIXED[number])
                case "MARK":
                    marks.append(len(stack))
                case "POP":
                    marks.pop() if marks and marks[-1] == len(stack) else stack.pop()
                case "POP_MARK":
                    since_mark()
                case "BINPUT" | "LONG_BINPUT" as number:
                    memo[take_number(stream, FIXED[number])] = stack[-1]
                case "MEMOIZE":
                    memo[len(memo)] = stack[-1]
                case "BINGET" | "LONG_BINGET" as number:
                    stack.append(memo[take_number(stream, FIXED[number])])
                case "NONE":
                    stack.append(None)
                case "NEWTRUE":
                    stack.append(True)
                case "NEWFALSE":
                    stack.append(False)
                case number if number in FIXED:
                    stack.append(take_number(stream, FIXED[number]))
                case literal if literal in COUNTED:
                    data = take(stream, take_number(stream, COUNTED[literal]))
                    stack.append(decode(literal, data))
                case "EMPTY_LIST":
                    stack.append([])
                case "EMPTY_DICT":
                    stack.append({})
                case "EMPTY_SET":
                    stack.append(set())
                case "EMPTY_TUPLE":
                    stack.append(())
                case "TUPLE1" | "TUPLE2" | "TUPLE3" as short:
                    items = [stack.pop() for _ in range(int(short[-1]))]
                    stack.append(tuple(reversed(items)))
                case "TUPLE":
                    stack.append(tuple(since_mark()))
                case "FROZENSET":
                    stack.append(build_frozenset(since_mark()))
                case "APPEND":
                    item = stack.pop()
                    put(stack[-1], [item], (list, list.extend))
                case "APPENDS":
                    items = since_mark()
                    put(stack[-1], items, (list, list.extend))
                case "ADDITEMS":
                    items = hashable(since_mark())
                    put(stack[-1], items, (set, set.update))
                case "SETITEM":
                    value, key = stack.pop(), stack.pop()
                    put(stack[-1], pairs([key, value]), (dict, dict.update), (OrderedDict, OrderedDict.update))
                case "SETITEMS":
                    items = since_mark()
                    put(stack[-1], pairs(items), (dict, dict.update), (OrderedDict, OrderedDict.update))
                case "GLOBAL":
                    module, name = take_line(stream), take_line(stream)
                    stack.append(self.name(module, name))
                case "STACK_GLOBAL":
                    name, module = stack.pop(), stack.pop()
                    stack.append(self.name(module, name))
                case "REDUCE" | "NEWOBJ":
                    args, function = stack.pop(), stack.pop()
                    stack.append(self.call(function, args))
                case "NEWOBJ_EX":
                    keywords, args, function = stack.pop(), stack.pop(), stack.pop()
                    stack.append(self.call(function, (*args, keywords) if keywords else args))
                case "BUILD":
                    state = stack.pop()
                    if isinstance(stack[-1], Inert):
                        stack[-1].state = state
                    elif type(stack[-1]) is not OrderedDict:  # a state dict carries its module versions as attributes
                        raise RefusedError(f"it gives attributes to a {type(stack[-1]).__name__}")
                case "BINPERSID":
                    stack.append(self.persistent(stack.pop()))
                case other:
                    raise RefusedError(f"it holds the instruction {other}, which torch.save never writes")

    def name(self, module: Any, name: Any) -> Name:
        """Look a function or class up, by name only."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise RefusedError("it asks for something nameless")
        full = f"{module.replace('__builtin__', 'builtins')}.{name}"
        if not (self.inert or full in BUILDERS or full in STORAGES or full in DTYPES):
            raise RefusedError(
                f"it asks for {full[:80]}, and only tensors, numbers, strings and containers are read",
                hint="ask its author for safetensors; nothing in the file was run",
            )
        return Name(full)

    def call(self, function: Any, args: Any) -> Any:
        """What stands here for calling `function`: an own builder, or an inert record."""
        if not isinstance(function, Name) or not isinstance(args, tuple):
            raise RefusedError("it calls what is not a function")
        if function.name in BUILDERS:
            return BUILDERS[function.name](*args)
        if not self.inert:
            raise RefusedError(f"it calls {function.name[:80]}")
        return Inert(function.name, args)

    def persistent(self, id: Any) -> Any:
        """("storage", type, key, device, numel) -> the storage; ("module", class, file, source) -> the class."""
        if self.inert and id[0] == "module":
            return id[1]
        kind, storage_type, key, _, numel, *part = id
        if kind != "storage" or not isinstance(storage_type, Name) or type(key) is not str or any(part):
            raise RefusedError("it refers to something that is not a storage")
        dtype = STORAGES[storage_type.name]
        (numel,) = integers((numel,))
        size = numel * dtype.itemsize
        if key not in self.storages:
            self.unclaimed -= size
            if self.unclaimed < 0:
                raise RefusedError(f"storage {key[:80]!r} of {size} bytes does not fit in the file")
            raw = torch.empty(size, dtype=torch.uint8)
            self.storages[key] = Storage(raw, dtype, max(self.file_size, MAX_EXPANDED))
        storage = self.storages[key]
        if storage.dtype != dtype or len(storage.raw) != size:
            raise RefusedError(f"storage {key[:80]!r} is described twice, differently")
        return storage

    def check(self, value: Any, depth: int = 0, seen: dict[int, int] | None = None) -> None:
        """Refuse a result that holds itself, is nested too deeply, or holds what only stands for something."""
        seen = {} if seen is None else seen
        if depth > MAX_DEPTH:
            raise RefusedError("its containers are nested too deeply")
        if isinstance(value, Storage) or (isinstance(value, Name) and not self.inert):
            raise RefusedError("it holds a storage or a function, not a tensor")
        if seen.get(id(value), -1) >= depth:
            return
        seen[id(value)] = depth
        if isinstance(value, Inert):
            children = (value.args, value.state, value.items)
        elif isinstance(value, dict):
            children = value.values()
        elif isinstance(value, list | tuple):
            children = value
        else:
            return
        for child in children:
            if not isinstance(child, SCALARS):
                self.check(child, depth + 1, seen)


def take(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise EOFError("its pickle has no end")
    return data


def take_number(stream: BinaryIO, format: str) -> Any:
    return struct.unpack(format, take(stream, struct.calcsize(format)))[0]


def take_line(stream: BinaryIO) -> str:
    return stream.readline().removesuffix(b"\n").decode()


def decode(instruction: str, data: bytes) -> Any:
    """The value that a counted instruction pushes; strings of Python 2 are read as Latin 1."""
    if "LONG" in instruction:
        return int.from_bytes(data, "little", signed=True)
    if "UNICODE" in instruction:
        return data.decode()
    if "STRING" in instruction:
        return data.decode("latin1")
    return bytearray(data) if instruction == "BYTEARRAY8" else data


def pairs(items: list[Any]) -> list[tuple[Any, Any]]:
    """[key, value, key, value ...] -> [(key, value) ...]"""
    return list(zip(hashable(items[::2]), items[1::2], strict=True))


def put(target: Any, items: list, *kinds: tuple[type, Callable]) -> None:
    """Add items to a container of exactly one of these kinds, or to a record."""
    for kind, add in kinds:
        if type(target) is kind:
            return add(target, items)
    if not isinstance(target, Inert):
        raise RefusedError(f"it adds items to a {type(target).__name__}")
    target.items.extend(items)


def array(record: Any, types: tuple[str, ...]) -> NDArray[Any]:
    """The numpy array that a record of numpy's own pickles describes: `_reconstruct` of nothing, then its shape, type
    and bytes. ValueError where it is of none of `types`, such as "u1", or anything else."""
    if not isinstance(record, Inert):
        raise ValueError(f"a {type(record).__name__} stands for an array")
    if record.name not in ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct") or record.items:
        raise ValueError(f"a {record.name} is not allowed")
    _, shape, dtype, fortran, data = record.state
    known = isinstance(dtype, Inert) and dtype.name == "numpy.dtype" and len(dtype.args) == 3
    if not known or dtype.args not in [(kind, *flags) for kind in types for flags in ((0, 1), (False, True))]:
        raise ValueError(
            f"an array of another type than {' or '.join(str(np.dtype(kind)) for kind in types)} is not allowed"
        )
    if isinstance(dtype.state, tuple) and dtype.state[1] == ">":
        raise ValueError("an array in it is stored with its largest bytes first")
    raw = bytearray(data if isinstance(data, bytes) else data.encode("latin1"))
    return np.frombuffer(raw, dtype=f"<{dtype.args[0]}").reshape(shape, order="F" if fortran else "C")
