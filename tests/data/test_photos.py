"""The set "photos": which there are, and that no photograph is in two splits."""

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from etude.data import fetch, photos, remotes
from etude.data.remotes import Debian, File, Remote
from etude.errors import MissingError, RefusedError


def test_every_photograph_has_one_name_and_one_split(tmp_path: Path):
    everything = photos.files(path=str(tmp_path))
    debian = remotes.REMOTES["photos"].debian
    assert debian and len(everything) == len(debian.files) == len({file.sha256 for file in debian.files}) == 23
    splits = [photos.files(split, path=str(tmp_path)) for split in photos.SPLITS]
    assert [len(split) for split in splits] == [16, 2, 5]
    assert sorted(name for split in splits for name in split) == list(everything)
    assert everything["Aqua"] == tmp_path / "backgrounds/mate/nature/Aqua.jpg"
    assert everything["Path"] == tmp_path / "wallpapers/Path/contents/images/2560x1600.jpg"


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Two packages with a file each that is wanted, and others, links among them, in the same folders."""
    monkeypatch.setenv("ETUDE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(fetch, "ROOT", tmp_path / "root")
    wanted = {"backgrounds/one.jpg": b"first", "wallpapers/two.jpg": b"second one"}
    for package, (name, content) in zip(("a", "b"), wanted.items()):
        with tarfile.open(tmp_path / f"{package}.tar", "w") as tar:
            for member, data in ((name, content), (name.replace(".jpg", ".png"), b"unwanted"), ("link", None)):
                info = tarfile.TarInfo(f"./usr/share/{member}")
                if data is None:
                    info.type, info.linkname = tarfile.SYMTYPE, "one.jpg"
                else:
                    info.size = len(data)
                tar.addfile(info, io.BytesIO(data or b""))
    files = tuple(File(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in wanted.items())
    monkeypatch.setitem(remotes.REMOTES, "photos", Remote(debian=Debian("a b", "usr/share", files)))
    bin = tmp_path / "bin"
    bin.mkdir()
    download = f"cp {tmp_path}/*.tar . && for f in *.tar; do mv $f $f.deb; done"
    for tool, script in (("apt-get", download), ("dpkg-deb", 'cat "$2"')):
        (bin / tool).write_text(f"#!/bin/sh\n{script}\n")
        (bin / tool).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin}:/usr/bin:/bin")
    return wanted


def test_two_packages_make_one_set_of_the_wanted_files_alone(packages: dict[str, bytes]):
    folder = fetch.get("photos")
    assert {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.*g")} == packages
    assert fetch.status("photos").state == "here"


def test_a_package_that_lacks_a_file_is_refused(packages: dict[str, bytes], tmp_path: Path):
    raw = (tmp_path / "b.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(raw.replace(b"two.jpg", b"ten.jpg"))
    with pytest.raises((RefusedError, MissingError), match=r"two\.jpg|damaged"):
        fetch.get("photos")


def test_installed_packages_count_the_files_of_the_set_alone(packages: dict[str, bytes], tmp_path: Path):
    share = tmp_path / "root" / "usr" / "share"
    for name, data in packages.items():
        (share / name).parent.mkdir(parents=True, exist_ok=True)
        (share / name).write_bytes(data)
    (share / "other").write_bytes(b"not of the set")
    status = fetch.status("photos")
    assert (status.state, status.bytes) == ("package", sum(map(len, packages.values())))
    assert fetch.path("photos") == share
