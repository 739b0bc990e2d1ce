import gzip
import hashlib
import io
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from etude.data import archives
from etude.errors import RefusedError


def make_tar(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for member, content in members:
            if member.isreg():
                member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


def make_zip(path: Path, members: list[tuple[str, bytes]], mode: int = 0o100644) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, content, zipfile.ZIP_DEFLATED)


def unpack(archive: Path, max_bytes: int = 1_000_000, max_files: int = 10) -> Path:
    target = archive.with_name("out")
    target.mkdir()
    archives.unpack(archive, target, max_bytes=max_bytes, max_files=max_files)
    return target


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_good_archives(tmp_path: Path):
    wanted = {"set/a.bin": b"a" * 1000, "set/deep/b.bin": b"", "c": b"c"}
    members = [(entry("./set", tarfile.DIRTYPE), b""), *((entry(n), c) for n, c in wanted.items())]
    make_tar(tmp_path / "x.tar.gz", members)
    assert tree(unpack(tmp_path / "x.tar.gz")) == wanted
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "x.tar").write_bytes(gzip.decompress((tmp_path / "x.tar.gz").read_bytes()))
    assert tree(unpack(tmp_path / "x.tar")) == wanted
    shutil.rmtree(tmp_path / "out")
    make_zip(tmp_path / "x.zip", list(wanted.items()))
    assert tree(unpack(tmp_path / "x.zip")) == wanted


OUTSIDE = ["../evil", "a/../../evil", "/tmp/evil", "a\\..\\evil", "C:evil", "\\\\host\\evil"]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_no_path_leads_outside(tmp_path: Path, name: str, kind: str):
    inner = tmp_path / "inner"
    inner.mkdir()
    archive = inner / f"x.{kind}"
    if kind == "zip":
        make_zip(archive, [("good", b"1"), (name, b"2")])
    else:
        make_tar(archive, [(entry("good"), b"1"), (entry(name), b"2")])
    with pytest.raises(RefusedError, match="outside"):
        unpack(archive)
    assert sorted(tree(tmp_path)) == sorted({"inner/out/good", f"inner/x.{kind}"})


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE], ids=str
)
def test_no_links_and_devices(tmp_path: Path, kind: bytes):
    make_tar(tmp_path / "x.tar.gz", [(entry("a", kind, "/etc"), b""), (entry("a/passwd"), b"me")])
    with pytest.raises(RefusedError, match="'a' is a link or a device"):
        unpack(tmp_path / "x.tar.gz")
    assert list((tmp_path / "out").iterdir()) == []


def test_no_links_and_no_secrets_in_zips(tmp_path: Path):
    make_zip(tmp_path / "x.zip", [("a", b"/etc")], mode=0o120777)
    with pytest.raises(RefusedError, match="'a' is a link"):
        unpack(tmp_path / "x.zip")


def bomb_tar(path: Path) -> None:
    make_tar(path, [(entry("zeros"), bytes(20_000_000))])


def bomb_zip(path: Path) -> None:
    make_zip(path, [("zeros", bytes(20_000_000))])


def lying_zip(path: Path) -> None:
    """Says that its 20 million zeros are 10 bytes."""
    make_zip(path, [("zeros", bytes(20_000_000))])
    raw = path.read_bytes()
    path.write_bytes(raw.replace(struct.pack("<I", 20_000_000), struct.pack("<I", 10)))


def many_tar(path: Path) -> None:
    make_tar(path, [(entry(f"{number}"), b"") for number in range(11)])


def many_zip(path: Path) -> None:
    make_zip(path, [(f"{number}", b"") for number in range(11)])


def long_header_tar(path: Path) -> None:
    """A pax header of 50 million bytes, which tarfile would hold in memory."""
    member = entry("small")
    member.pax_headers = {"comment": "x" * 50_000_000}
    make_tar(path, [(member, b"")])


@pytest.mark.parametrize("make", [bomb_tar, bomb_zip, lying_zip, many_tar, many_zip, long_header_tar])
def test_bombs_are_refused(tmp_path: Path, make: Callable[[Path], None]):
    make(tmp_path / "x.zip")
    with pytest.raises(RefusedError):
        unpack(tmp_path / "x.zip")
    assert sum(len(content) for content in tree(tmp_path / "out").values()) <= 1_000_000


def test_a_member_twice_or_below_a_file_is_refused(tmp_path: Path):
    for number, names in enumerate((["a", "a"], ["a", "a/b"])):
        folder = tmp_path / str(number)
        folder.mkdir()
        make_tar(folder / "x.tar", [(entry(name), b"1") for name in names])
        with pytest.raises(RefusedError, match="comes twice"):
            unpack(folder / "x.tar")


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_damaged_archives_are_refused(tmp_path: Path, kind: str):
    content = hashlib.shake_128(b"noise").digest(200_000)
    archive = tmp_path / f"x.{kind}"
    if kind == "zip":
        make_zip(archive, [("a", content)])
    else:
        make_tar(archive, [(entry("a"), content)])
    raw = archive.read_bytes()
    flipped = bytearray(raw)
    flipped[len(raw) // 2] ^= 0x10
    for bad in (
        raw[: len(raw) // 2],
        raw[:-5],
        bytes(flipped),
        b"\x1f\x8bnonsense",
        b"PKnonsense",
        b"",
        b"words" * 300,
    ):
        archive.write_bytes(bad)
        with pytest.raises(RefusedError):
            unpack(archive)
        shutil.rmtree(tmp_path / "out")
