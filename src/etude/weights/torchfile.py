"""Read what `torch.save` wrote, safely: the two formats of .pt and .pth files, without running anything in them."""

import io
import os
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch

from etude.errors import MissingError, RefusedError
from etude.weights.pickle_machine import Machine, Storage, hashable

MAX_PICKLE = 64 << 20  # bytes of instructions; a thousand tensors take 100 kB
MAGIC_NUMBER, PROTOCOL_VERSION = 0x1950A86A20F9469CFC6C, 1001  # how a file from before torch 1.6 begins

MALFORMED = (
    *(IndexError, KeyError, TypeError, ValueError, OverflowError, EOFError, RuntimeError),
    *(OSError, struct.error, zipfile.BadZipFile),
)
"""What reading nonsense raises here and in zipfile."""


def read(path: str | Path, *, objects: Literal["refuse", "inert"] = "refuse") -> Any:
    """The content of a file of `torch.save`, on the CPU; parameters are read as plain tensors.

    `objects` says what to do about objects of other classes: "refuse" the file, or make them "inert" records, in which
    the tensors can be found. RefusedError says what is wrong with a file, MissingError why there is none.
    """
    try:
        file = Path(path).open("rb")  # noqa: SIM115
    except OSError as error:
        raise MissingError(f"{path} cannot be read: {error.strerror}") from error
    try:
        with file:
            size = os.fstat(file.fileno()).st_size
            machine = Machine(size, objects)
            start = file.read(512)
            file.seek(0)
            if start.startswith(b"PK"):
                result = read_zip(file, size, machine)
            elif start.startswith(b"\x80"):
                result = read_stream(file, machine)
            elif start[257:262] == b"ustar":
                raise RefusedError("it is a tar archive, as torch wrote before 2017", hint="save it again with torch")
            else:
                raise RefusedError("it is not a file of torch.save")
        machine.check(result)
    except RefusedError as error:
        raise RefusedError(f"{path} is refused: {error}", hint=error.hint) from error
    except MALFORMED as error:
        raise RefusedError(f"{path} is refused: it is damaged ({error})") from error
    return result


def read_zip(file: BinaryIO, size: int, machine: Machine) -> Any:
    """The format since torch 1.6: an uncompressed zip of `data.pkl` and one member `data/KEY` a storage."""
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        if len(members) < len(archive.infolist()):
            raise RefusedError("two members of the archive have one name")
        for name, info in members.items():
            if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
                raise RefusedError(f"member {name[:80]!r} is compressed, which torch.save never does")
            if name.startswith("/") or "\\" in name or ".." in name.split("/"):
                raise RefusedError(f"member {name[:80]!r} points outside the archive")
        if sum(info.file_size for info in members.values()) > size:
            raise RefusedError("its members are larger than the file")
        tops = [
            name.removesuffix("data.pkl") for name in members if name.count("/") == 1 and name.endswith("/data.pkl")
        ]
        if len(tops) != 1:
            raise RefusedError("it is a zip archive, but not one of torch.save")
        top = tops[0]
        if f"{top}constants.pkl" in members:
            raise RefusedError("it is a TorchScript program", hint="save its state_dict() instead")
        if members[f"{top}data.pkl"].file_size > MAX_PICKLE:
            raise RefusedError("its pickle is too long")
        byteorder = archive.read(f"{top}byteorder") if f"{top}byteorder" in members else b"little"

        result = machine.run(io.BytesIO(archive.read(f"{top}data.pkl")))
        for key, storage in machine.storages.items():
            info = members.get(f"{top}data/{key}")
            if info is None or info.file_size != len(storage.raw):
                raise RefusedError(f"storage {key[:80]!r} is missing or not as long as its tensors say")
            with archive.open(info) as member:
                fill(storage, member, little_endian=byteorder != b"big")
        return result


def read_stream(file: BinaryIO, machine: Machine) -> Any:
    """The format before torch 1.6: five pickles (magic, version, system, content, storage keys), then the storages."""
    head = io.BytesIO(file.read(MAX_PICKLE))
    if machine.run(head) != MAGIC_NUMBER:
        raise RefusedError("it is a pickle, but not one of torch.save", hint="save it again with safetensors")
    if machine.run(head) != PROTOCOL_VERSION:
        raise RefusedError("it has an unknown version")
    system = machine.run(head)
    result = machine.run(head)
    keys = machine.run(head)
    if not isinstance(keys, list) or set(hashable(keys)) != set(machine.storages):
        raise RefusedError("its list of storages does not agree with its tensors")
    file.seek(head.tell())
    little_endian = bool(system["little_endian"])
    for key in keys:
        storage = machine.storages[key]
        (numel,) = struct.unpack("<q" if little_endian else ">q", file.read(8))
        if numel * storage.dtype.itemsize != len(storage.raw):
            raise RefusedError(f"storage {key[:80]!r} is not as long as its tensors say")
        fill(storage, file, little_endian=little_endian)
    return result


def fill(storage: Storage, file: Any, *, little_endian: bool) -> None:
    """Read the storage's bytes, in this machine's order."""
    view = storage.raw.numpy().data
    done = 0
    while done < len(view):
        count = file.readinto(view[done : done + (16 << 20)])
        if not count:
            raise RefusedError("it ends before its last tensor")
        done += count
    if little_endian != (sys.byteorder == "little"):
        word = storage.dtype.itemsize // (2 if storage.dtype.is_complex else 1)
        storage.raw.copy_(storage.raw.view(-1, word).flip(1).view(-1))
    if storage.dtype == torch.bool and done and int(storage.raw.max()) > 1:
        raise RefusedError("a boolean in it is neither 0 nor 1")
