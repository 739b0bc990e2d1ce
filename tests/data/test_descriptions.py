"""The text of Debian's package descriptions, from lists as apt keeps them."""

import shutil
from pathlib import Path

import pytest

from etude.data import debian_pairs, descriptions
from etude.errors import MissingError

PACKAGES = """Package: libfoo1
Source: foo (1.2)

Package: foo-doc
Source: foo

Package: bar
"""
TRANSLATION = """Package: libfoo1
Description-md5: 1
Description-en: library of foo
 Foo does what
 foos do:
  * one thing
  * another
 .
 This is the library.

Package: foo-doc
Description-md5: 2
Description-en: documentation of foo
 Foo does what
 foos do:
 .
 This is its book.

Package: bar
Description-md5: 3
Description-en: bar
"""


@pytest.mark.skipif(not Path("/usr/lib/apt/apt-helper").exists(), reason="needs apt")
def test_a_document_is_a_source_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Paragraphs that its packages share stand once."""

    def update(work: Path, languages: str) -> Path:
        assert languages == "en"
        (work / "d_Packages").write_text(PACKAGES)
        (work / "d_Translation-en").write_text(TRANSLATION)
        return work

    monkeypatch.setattr(debian_pairs, "update", update)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    descriptions.make(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["descriptions.txt"]
    assert (tmp_path / "descriptions.txt").read_text() == (
        "bar\n\nlibrary of foo\nFoo does what foos do:\none thing\nanother\nThis is the library.\n"
        "documentation of foo\nThis is its book.\n"
    )


def test_without_apt_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(MissingError, match="made by apt-get"):
        descriptions.make(tmp_path)
