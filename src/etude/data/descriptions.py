"""English out of Debian: what its packages say of themselves, as one plain text.

A document is a source package: the descriptions of all that is built from it, each paragraph once, since these describe
themselves alike. Its first line is the first package's title; a paragraph or an item of a list is a line; a blank
line ends a document. The archive moves, and the text with it: 19.5 million bytes with Debian 12. The descriptions carry
no statement of a licence, so the text is made on the user's machine and never distributed. Imports no torch.
"""

import shutil
from pathlib import Path

from etude.data import debian_pairs
from etude.errors import MissingError
from etude.progress import Progress

FILE = "descriptions.txt"


def make(folder: Path, progress: Progress | None = None) -> None:
    """Write descriptions.txt into `folder`, which ends up with nothing else. MissingError where there is no apt, or it
    reaches no archive."""
    if not shutil.which("apt-get"):
        raise MissingError(
            "the text is made by apt-get, which this machine has not", hint="make it on Debian or Ubuntu"
        )
    work = folder / "work"
    work.mkdir()
    if progress:
        progress("package descriptions", 0, 0)
    lists = debian_pairs.update(work, "en")
    documents = gather(lists)
    shutil.rmtree(work)
    if not documents:
        raise MissingError("apt has no English descriptions", hint="sudo apt-get update, then try again")
    (folder / FILE).write_text("\n\n".join(documents) + "\n", encoding="utf-8")


def gather(lists: Path) -> list[str]:
    """The documents in apt's lists, in the order of their source packages' names."""
    sources = debian_pairs.source_packages(lists)
    lines: dict[str, dict[str, None]] = {}  # source package -> its lines in order, each once
    for record in debian_pairs.listed(lists, "*_Translation-en*"):
        document = lines.setdefault(sources.get(record["Package"], record["Package"]), {})
        for paragraph in debian_pairs.paragraphs(record.get("Description-en", "")):
            document |= dict.fromkeys(paragraph)
    return ["\n".join(line for line in lines[name] if line) for name in sorted(lines) if any(lines[name])]
