"""Unpacking archives that may be hostile: files and folders only, none outside the target, in bounded room."""

import gzip
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Container
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from etude.errors import RefusedError

CHUNK = 1 << 20


def unpack(archive: Path, target: Path, *, max_bytes: int, max_files: int = 10_000) -> None:
    """Unpacks a zip, tar or tar.gz below `target`, a folder that nothing else writes to.

    Only files and folders, none outside `target`, none twice, at most `max_files` members and `max_bytes` bytes of
    content, counted as they are written: anything else is a RefusedError.
    """
    room = Room(archive.name, target, max_bytes, max_files)
    try:
        with open(archive, "rb") as file:
            magic = file.read(4)
            file.seek(0)
            if magic[:2] == b"PK":
                _unzip(file, room)
            else:
                with gzip.open(file) if magic[:2] == b"\x1f\x8b" else file as stream:
                    untar(stream, room)
    except (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise RefusedError(f"{archive}: damaged archive ({error})", hint="delete it and get it again") from error


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Room:
    """A folder that an archive unpacks to, and what the archive may still use up there."""

    def __init__(self, archive: str, folder: Path, max_bytes: int, max_files: int):
        self.archive, self.folder, self.bytes, self.files = archive, folder, max_bytes, max_files
        self.limits = f"{max_bytes:,} bytes or {max_files:,} files"

    def refuse(self, why: str) -> RefusedError:
        return RefusedError(f"{self.archive}: {why}; not unpacked")

    def place(self, member: str) -> Path:
        """Where a member goes. Names are split at "/" only, so a backslash or a drive letter is refused too."""
        parts = PurePosixPath(member).parts
        if member.startswith("/") or ".." in parts or any(c in member for c in "\\\0") or member[1:2] == ":":
            raise self.refuse(f"the member {member!r} lies outside the folder it unpacks to")
        self.files -= 1
        if self.files < 0:
            raise self.refuse(f"it holds more than {self.limits}")
        return self.folder.joinpath(*parts)

    def add(self, member: str, content: _Readable) -> None:
        to = self.place(member)
        try:
            to.parent.mkdir(parents=True, exist_ok=True)
            with open(to, "xb") as file:
                while chunk := content.read(CHUNK):
                    self.take(len(chunk))
                    file.write(chunk)
        except (FileExistsError, NotADirectoryError):
            raise self.refuse(f"the member {member!r} comes twice") from None

    def take(self, count: int) -> None:
        self.bytes -= count
        if self.bytes < 0:
            raise self.refuse(f"it holds more than {self.limits}")


class _Bounded:
    """A stream that ends in a RefusedError past a number of bytes: tarfile keeps long headers in memory."""

    def __init__(self, stream: _Readable, room: Room):
        self.stream, self.room, self.left = stream, room, room.bytes + 2048 * room.files + CHUNK

    def read(self, size: int) -> bytes:
        chunk = self.stream.read(size)
        self.left -= len(chunk)
        if self.left < 0:
            raise self.room.refuse(f"it holds more than {self.room.limits}")
        return chunk


def untar(stream: _Readable, room: Room, under: str = "", only: Container[str] | None = None) -> None:
    """Members of an uncompressed tar stream, or those below the folder `under` with that part of their names cut off,
    or of these the files `only`.

    Reads to the end, so that what writes the other end of a pipe, or gzip's checksum, is not cut short.
    """
    bounded = _Bounded(stream, room)
    with tarfile.open(fileobj=bounded, mode="r|") as tar:  # pyright: ignore[reportArgumentType, reportCallIssue]
        for member in tar:
            name = member.name.removeprefix("./")
            if not f"{name}/".startswith(under):
                continue
            name = name[len(under) :]
            if only is not None and name not in only:
                continue
            if member.isdir():
                room.place(name).mkdir(parents=True, exist_ok=True)
            elif member.isreg() and (content := tar.extractfile(member)):
                room.add(name, content)
            else:
                raise room.refuse(f"the member {member.name!r} is a link or a device")
    while bounded.read(CHUNK):
        pass


def _unzip(file: IO[bytes], room: Room) -> None:
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or member.flag_bits & 1:
                raise room.refuse(f"the member {member.filename!r} is a link, a device or encrypted")
            if member.is_dir():
                room.place(member.filename).mkdir(parents=True, exist_ok=True)
            else:
                with archive.open(member) as content:
                    room.add(member.filename, content)
