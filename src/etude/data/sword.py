"""Texts of the SWORD project in its zText format, as Debian's sword-text-* packages carry them. Imports no torch.

Each testament is three files. `bzs` holds a record of 12 bytes for each block: offset, size and unpacked size,
little-endian; `bzz` the blocks, each compressed by zlib; `bzv`, the places of the verses, is not needed. A block is a
book or a part of one, in OSIS markup; footnotes are dropped, and paragraphs, lines of verse and titles become lines.
"""

import html
import re
import struct
import zlib
from pathlib import Path

from etude.errors import MissingError, RefusedError

TESTAMENTS = ("ot", "nt")
NAME = "bible.txt"
"""The plain text beside the official files, once `etude data get` made it."""
BLOCK_LIMIT, TEXT_LIMIT = 16 << 20, 256 << 20
"""Bytes that a block, and all of them, may unpack to; the World English Bible's largest takes 2.1 million, all 29."""

_NOTE = re.compile(r"<note\b.*?</note>", re.DOTALL)
_BREAK = re.compile(
    r"<(?:title|lb|l|lg|list|item|chapter|speaker)\b[^>]*>|</(?:title|item|speaker)>|<div\b(?![^>]*x-milestone)[^>]*>"
)
_TAG = re.compile(r"<[^>]*>")
_BEFORE_MARK = re.compile(r" +(?=[,.;:!?”)])")


def is_ztext(folder: Path) -> bool:
    """Whether the folder holds a testament in this format."""
    return any((folder / f"{name}.bzs").is_file() for name in TESTAMENTS)


def read(folder: Path) -> str:
    """The whole text, an empty line between blocks. RefusedError where a file is not what the format says."""
    blocks: list[str] = []
    room = TEXT_LIMIT
    for testament in TESTAMENTS:
        index, content = folder / f"{testament}.bzs", folder / f"{testament}.bzz"
        if not index.is_file():
            continue
        if not content.is_file():
            raise MissingError(f"{content} is missing beside {index.name}")
        for block in unpack(index, content):
            room -= len(block)
            if room < 0:
                raise RefusedError(f"{content} unpacks to more than {TEXT_LIMIT:,} bytes")
            try:
                text = plain(block.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise RefusedError(f"{content} holds a block that is not UTF-8 text: {error.reason}") from error
            # where verses are numbered unlike the module's scheme, a block repeats the one before it, and goes on
            if blocks and text.startswith(blocks[-1]):
                blocks.pop()
            if text:
                blocks.append(text)
    return "\n\n".join(blocks) + "\n"


def unpack(index: Path, content: Path) -> list[bytes]:
    """The blocks of a testament, each checked to lie in the file and to have the size that its record says."""
    records, packed = index.read_bytes(), content.read_bytes()
    if len(records) % 12:
        raise RefusedError(f"{index} has {len(records):,} bytes, which is no multiple of 12")
    blocks = []
    for number, (offset, size, unpacked) in enumerate(struct.iter_unpack("<III", records)):
        if offset + size > len(packed) or unpacked > BLOCK_LIMIT:
            raise RefusedError(f"{index}: block {number} lies outside {content.name}, or is larger than any book")
        try:
            inflater = zlib.decompressobj()
            block = inflater.decompress(packed[offset : offset + size], unpacked + 1)
        except zlib.error as error:
            raise RefusedError(f"{content}: block {number} is damaged ({error})") from error
        if len(block) != unpacked or not inflater.eof:
            raise RefusedError(f"{content}: block {number} does not unpack to the {unpacked:,} bytes of its record")
        blocks.append(block)
    return blocks


def plain(markup: str) -> str:
    """OSIS -> its text: no notes, a line a paragraph, title or line of verse, single spaces."""
    text = _NOTE.sub(" ", " ".join(markup.split()))  # the space after a word stands inside the note that follows it
    text = _BREAK.sub("\n", text)
    text = html.unescape(_TAG.sub("", text))
    lines = (_BEFORE_MARK.sub("", " ".join(line.split())) for line in text.split("\n"))
    return "\n".join(line for line in lines if line)


def write_plain(folder: Path) -> None:
    """Put the plain text beside the official files."""
    (folder / NAME).write_text(read(folder), encoding="utf-8")
