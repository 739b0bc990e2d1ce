"""The reader of .pt files: equal to torch's own on honest files, and unmoved by hostile ones."""

import contextlib
import io
import os
import pickle
import struct
import time
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._utils import _rebuild_tensor_v2

from etude.errors import MissingError, RefusedError
from etude.weights import pickle_machine, torchfile
from etude.weights.pickle_machine import Inert

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])


def save(content: Any, path: Path, *, zipped: bool = True, **options: Any) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped, **options)
    return path


# ---------------------------------------------------------------- honest files


def equal(ours: Any, theirs: Any) -> bool:
    """The same types, values, shapes and strides throughout; a Parameter is read as a tensor."""
    if isinstance(theirs, torch.Tensor):
        same = type(ours) is torch.Tensor and ours.dtype == theirs.dtype and ours.stride() == theirs.stride()
        return same and ours.shape == theirs.shape and bytes_of(ours) == bytes_of(theirs)
    if type(ours) is not type(theirs):
        return False
    if isinstance(theirs, dict):
        return list(ours) == list(theirs) and all(equal(ours[key], theirs[key]) for key in theirs)
    if isinstance(theirs, list | tuple):
        return len(ours) == len(theirs) and all(equal(a, b) for a, b in zip(ours, theirs))
    return ours == theirs or (ours != ours and theirs != theirs)


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def trained() -> dict[str, Any]:
    """A model, its optimiser with state, and what else training scripts save."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.randn(2, 3, 5, 5)).sum().backward()
    optimiser.step()
    return {"model": model.state_dict(), "optimizer": optimiser.state_dict(), "epoch": 3, "best": 0.9, "names": ["a"]}


def contents() -> dict[str, Any]:
    torch.manual_seed(0)
    base = torch.arange(24.0)
    numbers = torch.randint(0, 2, (7,))
    shared = nn.Parameter(torch.randn(3, 2))
    types = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16]
    types += [torch.int8, torch.uint8, torch.bool, torch.complex64, torch.complex128]
    young = [torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2]
    return {
        "checkpoint": trained(),
        "types": {str(dtype): numbers.to(dtype) for dtype in types},
        "young types": [numbers.to(dtype) for dtype in young],
        "views": [base.view(4, 6).t(), base[3:20:5], base.view(2, 3, 4)[:, 1], base[5], base[:0], torch.zeros(3, 0, 2)],
        "expanded": torch.ones(3).expand(1000, 3),
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "tied": OrderedDict(encoder=shared, decoder=shared, part=shared[1:]),
        "numbers": [1, -1, 2**31, -(2**40), 2**200, 0.1, float("inf"), float("nan"), True, None, 1j],
        "strings": ["", "é東", "x" * 300, b"", b"\x00\xff", bytearray(b"ab"), {b"key": "value", 1: 2, 0.5: 3}],
        "containers": [
            (),
            (1,),
            (1, 2),
            (1, 2, 3, 4),
            [],
            [[]],
            {},
            set(),
            {1, "a"},
            torch.Size((2, 3)),
            OrderedDict(),
        ],
        "one tensor": torch.randn(3),
    }


@FORMATS
@pytest.mark.parametrize("name", contents())
def test_equals_what_was_saved_and_what_torch_reads(name, zipped, tmp_path):
    content = contents()[name]
    path = save(content, tmp_path / "file.pt", zipped=zipped)
    ours = torchfile.read(path)
    assert equal(ours, content)
    if name != "strings" and (zipped or name != "young types"):  # torch refuses b"", and breaks on such streams
        assert equal(ours, torch.load(path, weights_only=True))


@FORMATS
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickle_protocols(protocol, zipped, tmp_path):
    content = {"tensor": torch.randn(3), "bytes": b"a", "bytearray": bytearray(b"b"), "set": {1}, "complex": 2j}
    path = save(content, tmp_path / "file.pt", zipped=zipped, pickle_protocol=protocol)
    assert equal(torchfile.read(path), content)


@FORMATS
def test_sharing_survives(zipped, tmp_path):
    """Tensors that shared memory do so again: writing to one shows in the other."""
    whole = torch.zeros(4)
    ours = torchfile.read(save([whole, whole[2:]], tmp_path / "file.pt", zipped=zipped))
    ours[1][0] = 7
    assert ours[0].tolist() == [0, 0, 7, 0]


def test_other_byte_order(tmp_path):
    """A file from a big-endian machine, made by turning the bytes of an honest one."""
    values = {"f": torch.tensor([1.5, -2.0]), "i": torch.tensor([1, 2**40]), "c": torch.tensor([1 + 2j])}
    source = save(values, tmp_path / "little.pt")
    storages = iter(values.values())
    with zipfile.ZipFile(source) as little, zipfile.ZipFile(tmp_path / "big.pt", "w") as big:
        for info in little.infolist():
            data = little.read(info)
            if "/data/" in info.filename:
                tensor = next(storages)
                word = tensor.element_size() // (2 if tensor.is_complex() else 1)
                data = np.frombuffer(data, np.uint8).reshape(-1, word)[:, ::-1].tobytes()
            big.writestr(info.filename, b"big" if info.filename.endswith("byteorder") else data)
    assert equal(torchfile.read(tmp_path / "big.pt"), values)


class Net(nn.Module):
    """Of a class that the reader never sees: with a child used twice, a buffer that is not saved, an odd attribute."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU())
        self.again = self.first
        self.register_buffer("anchors", torch.arange(6.0).view(3, 2))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)
        self.path = Path("somewhere")


@FORMATS
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_whole_objects_are_refused_or_inert(zipped, tmp_path):
    """A file that holds a whole model: refused, or read as records, of which no class is imported."""
    path = save({"model": Net(), "epoch": 1}, tmp_path / "file.pt", zipped=zipped)
    with pytest.raises(RefusedError, match=r"it asks for \S+\.Net"):
        torchfile.read(path)
    record = torchfile.read(path, objects="inert")["model"]
    assert isinstance(record, Inert) and record.name.endswith(".Net")
    assert isinstance(record.state["path"], Inert) and record.state["path"].name.startswith("pathlib.")


# ---------------------------------------------------------------- hostile files


def zip_of(data_pkl: bytes, members: dict[str, bytes] | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as archive:
        for name, data in {"data.pkl": data_pkl, "byteorder": b"little", **(members or {})}.items():
            archive.writestr(f"archive/{name}", data)
    return buffer.getvalue()


def stream_of(content: bytes, keys: list[str] = [], storages: bytes = b"") -> bytes:  # noqa: B006
    header = [torchfile.MAGIC_NUMBER, torchfile.PROTOCOL_VERSION, {"little_endian": True}]
    return b"".join(pickle.dumps(part, 2) for part in header) + content + pickle.dumps(keys, 2) + storages


class Claim:
    """A storage of four floats, described as a file can describe it."""

    def __init__(self, key: Any = "0", numel: Any = 4, kind: Any = "storage", type: Any = torch.FloatStorage):
        self.id = (kind, type, key, "cpu", numel)


class Rebuild:
    """A tensor over a storage, described as a file can describe it."""

    def __init__(
        self, size: Any = (2, 2), stride: Any = (2, 1), offset: Any = 0, storage: Any = None, hooks: Any = None
    ):
        self.args = (Claim() if storage is None else storage, offset, size, stride, False, hooks or OrderedDict())

    def __reduce__(self):
        return _rebuild_tensor_v2, self.args


def pickled(content: Any) -> bytes:
    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return obj.id if isinstance(obj, Claim) else None

    buffer = io.BytesIO()
    Pickler(buffer, 2).dump(content)
    return buffer.getvalue()


FLOATS = {"data/0": struct.pack("<4f", 1, 2, 3, 4)}


def refused(data: bytes, folder: Path, message: str | None = None, **options: Any) -> None:
    """The file is refused, with this reason, within 100 ms of the processor's time."""
    path = folder / "hostile.pt"
    path.write_bytes(data)
    start = time.process_time()
    with pytest.raises(RefusedError, match=message) as caught:
        torchfile.read(path, **options)
    assert time.process_time() - start < 1.0
    assert caught.value.code == 4 and str(path) in str(caught.value) and len(str(caught.value)) < 400


def test_the_forger_can_be_honest(tmp_path):
    """So that the refusals below are due to their lies."""
    path = tmp_path / "honest.pt"
    for data in (
        zip_of(pickled({"w": Rebuild()}), FLOATS),
        stream_of(pickled({"w": Rebuild()}), ["0"], struct.pack("<q4f", 4, 1, 2, 3, 4)),
    ):
        path.write_bytes(data)
        assert equal(torchfile.read(path), {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]])})


def attacks(marker: Path) -> dict[str, bytes]:
    """Pickles that create `marker` when a real unpickler executes them, by each instruction that can call."""
    touch = f"touch {marker}"

    class System:
        def __reduce__(self):
            return os.system, (touch,)

    class Eval:
        def __reduce__(self):
            return eval, (f"open({str(marker)!r}, 'w').close()",)

    class Pathlib:
        def __reduce__(self):
            return Path.touch, (marker,)

    class Nested:
        def __reduce__(self):
            return OrderedDict, ([["w", [System()]]],)

    text = touch.encode()
    line = b"S'" + text + b"'\n"
    return {
        "REDUCE by GLOBAL": pickle.dumps(System(), 2),
        "REDUCE by STACK_GLOBAL": pickle.dumps(System(), 4),
        "eval": pickle.dumps(Eval(), 2),
        "a method": pickle.dumps(Pathlib(), 4),
        "nested in a container": pickle.dumps({"state_dict": OrderedDict(w=Nested())}, 2),
        "hidden behind a POP": b"\x80\x02" + pickle.dumps(System(), 2)[2:-1] + b"0}.",
        "INST": b"(" + line + b"ios\nsystem\n.",
        "OBJ": b"(cos\nsystem\n" + line + b"o.",
        "memoised function": b"cos\nsystem\nq\x010h\x01(" + line + b"tR.",
        "BUILD with a hostile state": b"\x80\x02ccollections\nOrderedDict\n)R"
        + pickle.dumps(System(), 2)[2:-1]
        + b"b.",
        "found by attribute": b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93\x8c\x02os\x8c\x06system\x93\x8c\x08__call__"
        b"\x86R" + b"\x8c" + bytes([len(text)]) + text + b"\x85R.",
        "a dotted name": b"\x80\x04\x8c\x05torch\x8c\x0b_utils.sys.modules\x93.".replace(b"\x0b_", b"\x12_"),
    }


ATTACKS = list(attacks(Path("unused")))


@pytest.mark.parametrize("objects", ["refuse", "inert"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_malicious_pickles_run_nothing(attack, objects, tmp_path):
    """Each attack works on a real unpickler, which is shown first, and does nothing here."""
    marker = tmp_path / "marker"
    data = attacks(marker)[attack]
    if attack != "a dotted name":
        with contextlib.suppress(pickle.UnpicklingError):
            pickle.loads(data)
        assert marker.exists()
        marker.unlink()
    for file in (zip_of(data), stream_of(data)):
        if objects == "refuse":
            refused(file, tmp_path, "it asks for|it holds the instruction (INST|OBJ|STRING)")
        else:
            (tmp_path / "inert.pt").write_bytes(file)
            with contextlib.suppress(RefusedError):  # some call what is not a function, which no record stands for
                torchfile.read(tmp_path / "inert.pt", objects="inert")
    assert not marker.exists()


def test_the_message_names_the_function(tmp_path):
    refused(zip_of(pickle.dumps(os.getcwd, 2)), tmp_path, r"it asks for posix\.getcwd")
    with pytest.raises(RefusedError) as caught:
        torchfile.read(tmp_path / "hostile.pt")
    assert "nothing in the file was run" in caught.value.hint


HUGE = 1 << 40
LIES = {
    "beyond the storage": Rebuild(size=(5,), stride=(1,)),
    "offset beyond": Rebuild(offset=1),
    "offset at the end": Rebuild(size=(), stride=(), offset=4),
    "empty far beyond": Rebuild(size=(0,), stride=(1,), offset=5),
    "stride beyond": Rebuild(stride=(3, 1)),
    "negative offset": Rebuild(size=(1,), stride=(1,), offset=-1),
    "negative stride": Rebuild(size=(2,), stride=(-1,), offset=1),
    "negative size": Rebuild(size=(-1,), stride=(1,)),
    "huge size": Rebuild(size=(HUGE,), stride=(1,)),
    "huge size, stride zero": Rebuild(size=(HUGE,), stride=(0,)),
    "huge product": Rebuild(size=(HUGE, HUGE, HUGE), stride=(0, 0, 0)),
    "huge empty": Rebuild(size=(0, HUGE, HUGE), stride=(1, 1, 1)),
    "wraps around 64 bits": Rebuild(size=(2,), stride=(1 << 63,)),
    "wraps around in sum": Rebuild(size=(3, 3), stride=(1 << 61, 1 << 61)),
    "too many dimensions": Rebuild(size=(1,) * 65, stride=(1,) * 65),
    "fewer strides than sizes": Rebuild(size=(2, 2), stride=(1,)),
    "sizes of floats": Rebuild(size=(2.0, 2.0)),
    "sizes of booleans": Rebuild(size=(True, True)),
    "size not a tuple": Rebuild(size=4),
    "with hooks": Rebuild(hooks={"hook": 1}),
    "storage of another length": Rebuild(storage=Claim(numel=3), size=(3,), stride=(1,)),
    "storage of another type": Rebuild(storage=Claim(type=torch.DoubleStorage)),
    "storage larger than the file": Rebuild(storage=Claim(numel=HUGE)),
    "storage of negative length": Rebuild(storage=Claim(numel=-4)),
    "storage without a member": Rebuild(storage=Claim(key="7")),
    "storage outside": Rebuild(storage=Claim(key="../data.pkl")),
    "storage key not a string": Rebuild(storage=Claim(key=0)),
    "storage of another kind": Rebuild(storage=Claim(kind="file")),
    "storage of no type": Rebuild(storage=Claim(type="FloatStorage")),
    "storage of an odd type": Rebuild(storage=Claim(type=OrderedDict)),
    "no storage": Rebuild(storage=b"1234"),
    "one storage, two lengths": [Rebuild(), Rebuild(storage=Claim(numel=2), size=(1,), stride=(1,))],
    "a bare storage": Claim(),
    "a bare class": OrderedDict,
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_about_tensors(lie, tmp_path):
    refused(zip_of(pickled({"w": LIES[lie]}), FLOATS), tmp_path)
    floats = struct.pack("<q4f", 4, 1, 2, 3, 4)
    refused(stream_of(pickled({"w": LIES[lie]}), ["0"], floats), tmp_path)


def test_a_file_cannot_swell(tmp_path):
    """What is legal but would fill the memory: many elements of one, counted against the file."""
    path = tmp_path / "file.pt"
    path.write_bytes(zip_of(pickled(Rebuild(size=(1 << 20,), stride=(0,))), FLOATS))
    assert torchfile.read(path).shape == (1 << 20,)
    refused(zip_of(pickled(Rebuild(size=(1 << 21,), stride=(0,))), FLOATS), tmp_path, "too large for the file")


def nested(depth: int) -> bytes:
    return b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b"."


BOMBS = {
    "deeply nested": nested(5000),
    "holds itself": b"\x80\x02]q\x00h\x00a.",
    "a tuple that takes forever to hash": b"\x80\x02)" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(60)) + b"N}s.",
    "the same as a key": b"\x80\x02})" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(60)) + b"Ns.",
    "the same in a set": b"\x80\x04\x8f()" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(60)) + b"\x90.",
    "a long string": b"\x80\x02X\xff\xff\xff\x7fabc.",
    "bytes of four gigabytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 32) + b".",
    "a number of many digits": b"\x80\x02L" + b"9" * 100_000 + b"L\n.",
    "memory by bytearray": b"\x80\x02cbuiltins\nbytearray\nM\xff\xff\x85R.",
    "memory by bytes": b"\x80\x02cbuiltins\nbytes\nM\xff\xff\x85R.",
    "an extension code": b"\x80\x02\x82\x01.",
    "a buffer": b"\x80\x05\x97.",
    "nothing": b"",
    "no end": b"\x80\x02}",
    "an empty stack": b"\x80\x02.",
    "no mark": b"\x80\x02t.",
    "too few items": b"\x80\x02N\x86.",
    "an odd number of pairs": b"\x80\x02}(Nu.",
    "an unknown memo": b"\x80\x02h\x05.",
    "an unknown instruction": b"\x80\x02\xff.",
    "a persistent number": b"\x80\x02K\x01Q.",
    "a persistent string": b"P0\n.",
    "items for a string": b"\x80\x02X\x01\x00\x00\x00aNa.",
    "attributes for a dict": b"\x80\x02}}b.",
    "a call of a string": b"\x80\x02X\x01\x00\x00\x00a)R.",
    "a call with a list": b"\x80\x02ccollections\nOrderedDict\n]R.",
    "a name that is no string": b"\x80\x04NN\x93.",
}


@pytest.mark.parametrize("objects", ["refuse", "inert"])
@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_and_nonsense(bomb, objects, tmp_path):
    refused(zip_of(BOMBS[bomb]), tmp_path, objects=objects)
    refused(stream_of(BOMBS[bomb]), tmp_path, objects=objects)


def test_shared_containers_are_read_in_linear_time(tmp_path):
    """A list of the same list twice, sixty times over: 2^60 leaves, 60 lists. Legal, as nobody hashes it."""
    path = tmp_path / "file.pt"
    path.write_bytes(zip_of(b"\x80\x02)" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(60)) + b"."))
    start = time.process_time()
    torchfile.read(path)
    assert time.process_time() - start < 1.0


def test_too_many_instructions(monkeypatch, tmp_path):
    monkeypatch.setattr(pickle_machine, "MAX_INSTRUCTIONS", 1000)
    refused(zip_of(b"\x80\x02" + b"N0" * 1000 + b"N."), tmp_path, "its pickle is too long")
    monkeypatch.setattr(torchfile, "MAX_PICKLE", 1000)
    refused(zip_of(b"\x80\x02" + b"N0" * 1000 + b"N."), tmp_path, "its pickle is too long")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives(tmp_path):
    """Zip archives that are not as torch.save writes them."""
    honest = pickled({"w": Rebuild()})
    refused(zip_of(honest, FLOATS, compression=zipfile.ZIP_DEFLATED), tmp_path, "is compressed")
    refused(zip_of(honest, {**FLOATS, "../../evil": b""}), tmp_path, "points outside")
    refused(zip_of(honest, {**FLOATS, "constants.pkl": b""}), tmp_path, "TorchScript")
    refused(zip_of(honest), tmp_path, "is missing")
    refused(zip_of(honest, {"data/0": b"123"}), tmp_path, "not as long")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme.txt", "hello")
    refused(buffer.getvalue(), tmp_path, "not one of torch.save")
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("archive/data.pkl", honest)
        archive.writestr("archive/data.pkl", honest)
    refused(buffer.getvalue(), tmp_path, "have one name")
    damaged = bytearray(zip_of(honest, FLOATS))
    damaged[damaged.index(FLOATS["data/0"])] ^= 1
    refused(bytes(damaged), tmp_path, "damaged")


def test_members_larger_than_the_file(tmp_path):
    """Entries that overlap: one megabyte, listed a hundred times."""
    data = bytearray(zip_of(pickled({}), {"data/0": bytes(1 << 20)}))
    directory = data.index(b"PK\x01\x02")
    end = data.index(b"PK\x05\x06")
    entry = data[data.rindex(b"PK\x01\x02") : end]
    extra = b"".join(entry.replace(b"data/0", b"data/%c" % (65 + i % 26) + b"") for i in range(26))
    head = struct.unpack("<4s4H2LH", data[end:])
    tail = struct.pack("<4s4H2LH", head[0], 0, 0, head[3] + 26, head[4] + 26, head[5] + len(extra), head[6], 0)
    refused(bytes(data[:end] + extra + tail), tmp_path, "larger than the file")
    assert directory < end


def test_booleans(tmp_path):
    """A byte that is neither 0 nor 1 is no boolean; torch's own kernels behave oddly on it."""
    claim = Claim(type=torch.BoolStorage, numel=2)
    data = pickled(Rebuild(storage=claim, size=(2,), stride=(1,)))
    refused(zip_of(data, {"data/0": b"\x01\x02"}), tmp_path, "neither 0 nor 1")


@FORMATS
def test_truncated_anywhere(zipped, tmp_path):
    whole = save({"w": torch.arange(6.0), "b": torch.ones(2)}, tmp_path / "whole.pt", zipped=zipped).read_bytes()
    for length in range(0, len(whole) - 1, 7):
        refused(whole[:length], tmp_path)


def test_other_files(tmp_path):
    refused(b"", tmp_path, "not a file of torch.save")
    refused(b"hello" * 200, tmp_path, "not a file of torch.save")
    refused(pickle.dumps({"w": 1}, 2), tmp_path, "a pickle, but not one of torch.save")
    refused(bytes(257) + b"ustar" + bytes(250), tmp_path, "tar archive")
    with pytest.raises(MissingError, match="No such file"):
        torchfile.read(tmp_path / "absent.pt")
    with pytest.raises(MissingError, match="directory"):
        torchfile.read(tmp_path)


# ---------------------------------------------------------------- any file


def permitted(value: Any, inert: bool) -> bool:
    """Made of tensors (usable to their last element), numbers, strings, bytes, containers; maybe of records."""
    if isinstance(value, torch.Tensor):
        return value.clone().numel() == value.numel()
    if isinstance(value, dict):
        return all(permitted(item, inert) for item in value.values())
    if isinstance(value, Inert | pickle_machine.Name):
        return inert
    if isinstance(value, list | tuple | set | frozenset):
        return all(permitted(item, inert) for item in value)
    return type(value) in (str, int, float, complex, bool, bytes, bytearray, type(None))


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """One to four random changes: bytes replaced, bits flipped, pieces removed, doubled, moved or filled."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(0, len(changed) + 1))
        length = int(rng.integers(1, 9))
        piece = changed[at : at + length]
        match rng.integers(0, 6):
            case 0:
                changed[at : at + 1] = rng.bytes(1)
            case 1 if at < len(changed):
                changed[at] ^= 1 << int(rng.integers(0, 8))
            case 2:
                del changed[at : at + length]
            case 3:
                changed[at:at] = piece
            case 4:
                to = int(rng.integers(0, len(changed) + 1))
                changed[to:to] = piece
            case _:
                changed[at : at + length] = bytes([int(rng.choice([0, 0xFF, 0x7F, 0x80]))]) * len(piece)
        if not changed:
            return b""
    return bytes(changed)


def fuzz(count: int, folder: Path, objects: Any) -> tuple[int, int]:
    """Read `count` mutations of honest files; the numbers of those read and refused."""
    torch.manual_seed(0)
    small = {"state_dict": OrderedDict(w=torch.randn(3, 2).t(), b=torch.ones(2, dtype=torch.bfloat16)), "epoch": 1}
    content = {**small, "more": [(1, 2.5, None, True), {1, 2}, b"x", torch.Size((1,)), nn.Parameter(torch.ones(1))]}
    zipped = save(content, folder / "zip.pt").read_bytes()
    stream = save(content, folder / "stream.pt", zipped=False).read_bytes()
    with zipfile.ZipFile(io.BytesIO(zipped)) as archive:
        members = {info.filename.split("/", 1)[1]: archive.read(info) for info in archive.infolist()}
    program = members.pop("data.pkl")
    path = folder / "mutated.pt"
    read = 0
    rng = np.random.default_rng(0)
    for i in range(count):
        if i % 3 == 0:
            data = mutated(zipped, rng)
        elif i % 3 == 1:  # past the archive's checksums
            data = zip_of(mutated(program, rng), members)
        else:
            data = mutated(stream, rng)
        path.write_bytes(data)
        try:
            value = torchfile.read(path, objects=objects)
        except RefusedError:
            continue
        assert permitted(value, objects == "inert")
        read += 1
    path.unlink()
    assert sorted(file.name for file in folder.iterdir()) == ["stream.pt", "zip.pt"], "reading wrote a file"
    return read, count - read


@pytest.mark.parametrize("objects", ["refuse", "inert"])
def test_fuzz(objects, tmp_path, monkeypatch):
    """Whatever is done to a file, it is read or refused: no other exception, no crash, no file written."""
    monkeypatch.chdir(tmp_path)
    read, refusals = fuzz(2000, tmp_path, objects)
    assert read > 50 and refusals > 1000  # mutations of values alone are not noticed, others are


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_fuzz_long(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    read, refusals = fuzz(100_000, tmp_path, "refuse")
    assert read > 1000 and refusals > 50_000
