"""Documents in plain text files, read in pieces: memory does not depend on how long files, documents or lines are."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from etude.data import sword
from etude.errors import MissingError, UsageError

Documents = Literal["file", "blank", "line"]
"""What a document is: a whole file, what stands between blank lines, or a line."""

CHUNK = 1 << 20
"""Bytes read at a time."""
PIECE = 1 << 16
"""Most characters of a piece."""
SEPARATORS = {"blank": re.compile(r"\n(?:[ \t\r]*\n)+"), "line": re.compile(r"\r?\n")}
BLANK_LINES = re.compile(r"(?:[ \t\r]*\n)+")


def files_of(path: Path) -> list[Path]:
    """The file itself, or the .txt files of a folder in the order of their names; a folder of SWORD's zText files is
    one text, or the plain one that `etude data get` made of it."""
    if not path.exists():
        raise MissingError(f"{path}: no such file or folder", hint="--data.path FILE, a UTF-8 text")
    if path.is_file():
        return [path]
    if sword.is_ztext(path):
        return [path / sword.NAME if (path / sword.NAME).is_file() else path]
    if files := sorted(path.rglob("*.txt")):
        return files
    raise UsageError(f"the folder {path} holds no .txt file")


def decoded(path: Path) -> Iterator[str]:
    """A UTF-8 file's text, chunk by chunk and without a byte order mark. UsageError names the first byte that is not
    UTF-8."""
    if path.is_dir():
        yield sword.read(path)
        return
    at, held = 0, b""
    with open(path, "rb") as file:
        while True:
            chunk = file.read(CHUNK)
            content = held + chunk
            try:
                text, held = content.decode("utf-8"), b""
            except UnicodeDecodeError as error:
                if not chunk or error.reason != "unexpected end of data":
                    raise UsageError(
                        f"{path} is not UTF-8 text: byte {at + error.start:,} is 0x{content[error.start]:02x}",
                        hint=f"if it is Latin-1: iconv -f latin1 -t utf-8 {path} > utf8.txt",
                    ) from None
                text, held = content[: error.start].decode("utf-8"), content[error.start :]
            if text:
                yield text if at else text.removeprefix("\ufeff")
            if not chunk:
                return
            at += len(content) - len(held)


def pieces(files: Iterable[Path], kind: Documents) -> Iterator[tuple[str, bool]]:
    """(text, whether its document ends there): the documents, longer ones in several pieces. Empty ones are left out,
    and so is what separates them.

    A piece ends before white space that follows something else, where every tokenizer of ours ends a token, so that
    the pieces' tokens are the document's; only where half a piece holds no such place is it cut between characters.
    """
    for file in files:
        held, begun = "", False
        for text in decoded(file):
            held += text
            *whole, held = SEPARATORS[kind].split(held) if kind in SEPARATORS else [held]
            for document in whole:
                yield from _pieces(document, kind, begun)
                begun = False
            if kind == "blank" and not begun and (blank := BLANK_LINES.match(held)):
                held = held[blank.end() :]
            while len(held) > PIECE:
                at = _place(held)
                yield held[:at], False
                held, begun = held[at:], True
        yield from _pieces(held if kind == "file" else held.rstrip("\r\n"), kind, begun)


def _pieces(document: str, kind: Documents, begun: bool) -> Iterator[tuple[str, bool]]:
    """The rest of a document, of which pieces have been given already or not."""
    if not begun and not (document if kind == "file" else document.strip()):
        return
    while len(document) > PIECE:
        at = _place(document)
        yield document[:at], False
        document = document[at:]
    yield document, True


def _place(text: str) -> int:
    """Where to cut a text that is longer than a piece."""
    for at in range(PIECE, PIECE // 2, -1):
        if text[at] in " \t\r\n" and not text[at - 1].isspace():
            return at
    return PIECE
