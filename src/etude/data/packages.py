"""A citation graph of software: Debian's packages, joined where one asks for another.

What apt knows of every package becomes a set for classifying nodes, built on the user's machine by these rules:
    nodes     packages of the sections below that ask for one of them, or that one of them asks for
    edges     one for each pair of which one names the other in Depends, Pre-Depends or Recommends, in both directions
    classes   the seven sections of programs for a use, not for a language or a part of the system
    features  which words of at least three letters stand in the package's short description; only words that do in at
              least five packages, and no function words
    split     20 packages a class to train on, 500 to choose by, 1,000 to test on, drawn by counter-based randomness
The archive moves, so the counts do: with Debian 12's lists of 2026 it has 4,672 nodes, 5,791 pairs and 960 words, and
91 % of the pairs lie within a class. Imports no torch.
"""

import lzma
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from etude.data import order
from etude.errors import MissingError, RefusedError
from etude.progress import Progress

SECTIONS = ("games", "graphics", "net", "science", "sound", "text", "web")
RELATIONS = ("Depends", "Pre-Depends", "Recommends")
FUNCTION_WORDS = frozenset(
    """all and any but can for from has have into its more not other out over than that the this through use used using
    via was which with you your""".split()  # noqa: SIM905
)
MIN_PACKAGES = 5
"""In how many packages a word must stand."""
TRAIN_PER_CLASS, VALIDATION, TEST = 20, 500, 1000
SEED = 0x5EED
MIRROR = "https://deb.debian.org/debian/dists/stable/main/binary-amd64/Packages.xz"
LARGEST = 400_000_000
"""Bytes of package lists that are read; Debian 12 has 53 million."""
FILE = "graph.npz"


def make(way: str, folder: Path, progress: Progress | None = None) -> None:
    """Write graph.npz into `folder`: from apt's lists on this machine ("debian"), or from Debian's archive
    ("official")."""
    if progress:
        progress("package lists", 0, 0)
    build(from_apt() if way == "debian" else from_archive(), folder / FILE)


def from_apt() -> Iterator[str]:
    """The lines of `apt-cache dumpavail`: every package that apt knows of."""
    if not shutil.which("apt-cache"):
        raise MissingError("there is no apt-cache on this machine", hint="etude data get packages --source official")
    command = ["apt-cache", "dumpavail"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8", errors="replace") as process:
        assert process.stdout is not None
        yield from process.stdout
    if process.returncode:
        raise MissingError("`apt-cache dumpavail` failed", hint="sudo apt-get update && etude data get packages")


def from_archive(url: str = MIRROR) -> Iterator[str]:
    """The lines of the archive's index of stable, main, amd64."""
    request = urllib.request.Request(url, headers={"User-Agent": "etude"})
    read = 0
    try:
        with urllib.request.urlopen(request, timeout=20) as response, lzma.open(response, "rb") as lines:
            for line in lines:
                read += len(line)
                if read > LARGEST:
                    raise RefusedError(f"{url}: more than {LARGEST:,} bytes of package lists")
                yield line.decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        error.close()
        raise MissingError(f"{url} answered {error.code} {error.reason}", hint="try again later") from None
    except (OSError, EOFError, lzma.LZMAError) as error:
        reason = getattr(error, "reason", error)
        raise MissingError(f"{url} cannot be read ({reason})", hint="etude data get packages --source debian") from None


def records(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    """The paragraphs of a package list, field by field; lines that begin with a space go on with the field before."""
    record: dict[str, str] = {}
    field = ""
    for line in lines:
        line = line.rstrip("\n")
        if not line.strip():
            if record:
                yield record
            record, field = {}, ""
        elif line[0] in " \t":
            if field:
                record[field] += "\n" + line
        else:
            field, _, value = line.partition(":")
            record[field] = value.strip()
    if record:
        yield record


def named(relations: str) -> list[str]:
    """The packages in a field of relations: "a (>= 1), b:any | c" -> a, b, c."""
    parts = (part.strip() for part in re.split(r"[,|]", relations))
    return [re.split(r"[\s:(\[<]", part, maxsplit=1)[0] for part in parts if part]


def words(description: str) -> set[str]:
    """The words of a short description that may become features."""
    return set(re.findall(r"[a-z]{3,}", description.split("\n")[0].lower())) - FUNCTION_WORDS


def build(lines: Iterable[str], path: Path) -> None:
    """The graph of a package list, written as `Graph(source="file")` reads it: x, edges, label, names, classes, words,
    train, validation, test. MissingError where the list holds too few packages."""
    found: dict[str, dict[str, str]] = {}
    for record in records(lines):
        section = record.get("Section", "").rpartition("/")[2]
        if section in SECTIONS and "Package" in record:
            found.setdefault(record["Package"], record | {"Section": section})
    asked = {
        (name, other)
        for name, record in found.items()
        for relation in RELATIONS
        for other in named(record.get(relation, ""))
        if other in found and other != name
    }
    names = sorted({name for pair in asked for name in pair})
    place = {name: i for i, name in enumerate(names)}
    pairs = sorted({tuple(sorted((place[a], place[b]))) for a, b in asked})
    label = np.array([SECTIONS.index(found[name]["Section"]) for name in names], dtype=np.int64)
    train, validation, test = _split(label)

    described = [words(found[name].get("Description", "")) for name in names]
    counts = Counter(word for one in described for word in one)
    vocabulary = sorted(word for word, count in counts.items() if count >= MIN_PACKAGES)
    column = {word: i for i, word in enumerate(vocabulary)}
    x = np.zeros((len(names), len(vocabulary)), dtype=np.uint8)
    for row, one in enumerate(described):
        x[row, [column[word] for word in one if word in column]] = 1
    edges = np.array(pairs, dtype=np.int64).T
    np.savez_compressed(
        path, x=x, edges=np.concatenate([edges, edges[::-1]], 1), label=label, names=np.array(names),
        classes=np.array(SECTIONS), words=np.array(vocabulary), train=train, validation=validation, test=test,
    )  # fmt: skip


def _split(label: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    shuffled = order.permutation(SEED, 0, max(1, len(label)))[: len(label)]
    train = np.concatenate([shuffled[label[shuffled] == c][:TRAIN_PER_CLASS] for c in range(len(SECTIONS))])
    rest = shuffled[~np.isin(shuffled, train)]
    if len(train) < TRAIN_PER_CLASS * len(SECTIONS) or len(rest) < VALIDATION + TEST:
        raise MissingError(
            f"the package lists name only {len(label):,} packages of {', '.join(SECTIONS)} that ask for each other",
            hint="sudo apt-get update && etude data get packages, or --source official",
        )
    return np.sort(train), np.sort(rest[:VALIDATION]), np.sort(rest[VALIDATION : VALIDATION + TEST])
