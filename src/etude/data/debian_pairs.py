"""Pairs of sentences in two languages out of Debian: LibreOffice's help and the descriptions of packages.

Both are written in English and translated by volunteers, and in both it is known which text translates which:
    help           paragraphs and headings of the same html file with the same element id, of libreoffice-help-en-us
                   and libreoffice-help-de (-fr, -zh-cn). A document is an html file.
    descriptions   apt's translations of package descriptions: same Description-md5, same paragraph (and item of a
                   list) of those that both sides have. A document is a source package, whose binary packages describe
                   themselves alike.
What is kept of them (`keep`): pairs with letters, of 2 to 600 characters, whose lengths are in proportion, that differ
and whose target is in its language. Each English text is kept once, where it comes first. Written as pairs.tsv:
document, source, target.

The help is MPL-2.0; the descriptions carry no statement, so the set is built on the user's machine and never
distributed. The archive moves, and the counts with it. Imports no torch.
"""

import html
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

from etude.data.packages import records
from etude.errors import MissingError, RefusedError
from etude.progress import Progress

LANGUAGES = {"de": ("de", "de"), "fr": ("fr", "fr"), "zh": ("zh-cn", "zh_CN")}
"""Target language -> the ending of LibreOffice's package, and apt's name."""
FILE = "pairs.tsv"
Pair = tuple[str, str, str]
"""(document, source, target)"""
LONGEST = 600
"""Characters of a text that is kept."""
PROPORTION = {"de": (0.5, 2.2), "fr": (0.5, 2.2), "zh": (0.12, 1.0)}
"""Characters of the target for each of the source."""
SLACK = 12
"""Characters by which lengths may be out of proportion: short labels vary."""
ENGLISH = frozenset(
    "the of and is are to for with this that you can from or be by which your".split()  # noqa: SIM905
)
"""Words that neither German nor French has, or has rarely."""
CJK = re.compile(r"[\u4e00-\u9fff]")
LARGEST = 1_000_000_000
"""Bytes of help and lists that are read; Debian 12 has about 150 million."""


def make(target: str, folder: Path, progress: Progress | None = None) -> None:
    """Write pairs.tsv into `folder`, which ends up with nothing else: English and `target` ("de", "fr", "zh").

    Downloads with apt-get into `folder`; the machine's own lists and packages stay as they are. MissingError where
    there is no apt, or it reaches no archive.
    """
    for tool in ("apt-get", "dpkg-deb"):
        if not shutil.which(tool):
            raise MissingError(
                f"the pairs are made out of Debian's packages, and there is no {tool} on this machine",
                hint=f"make them on Debian or Ubuntu with `etude data get en-{target}` and pass --data.path pairs.tsv",
            )
    work = folder / "work"
    work.mkdir()
    help_name, apt_name = LANGUAGES[target]
    if progress:
        progress("LibreOffice's help", 0, 0)
    texts = help_texts(work, help_name)
    if progress:
        progress("package descriptions", 0, 0)
    texts += description_texts(work, apt_name)
    shutil.rmtree(work)
    pairs = list(keep(texts, target))
    if not pairs:
        raise MissingError(f"no pair of English and {target} was found", hint="sudo apt-get update, then try again")
    lines = ("\t".join(pair) + "\n" for pair in pairs)
    (folder / FILE).write_text("".join(lines), encoding="utf-8")


def _run(command: list[str], work: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=work, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=600
        )
    except subprocess.TimeoutExpired:
        raise MissingError(f"`{' '.join(command[:2])}` took more than 10 minutes", hint="try again") from None
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise MissingError(f"`{' '.join(command)}` failed: {said}", hint="sudo apt-get update, then try again")


# ---------------------------------------------------------------- LibreOffice's help


def help_texts(work: Path, language: str) -> list[Pair]:
    """All pairs of the help, downloaded."""
    sides: list[dict[tuple[str, str], str]] = []
    for name in ("en-us", language):
        package = f"libreoffice-help-{name}"
        _run(["apt-get", "download", "-q", package], work)
        archive = next(work.glob(f"{package}_*.deb"))
        _run(["dpkg-deb", "-x", archive.name, name], work)
        sides.append(dict(_elements(work / name)))
    english, translated = sides
    return [
        (document, english[document, i], translated[document, i])
        for document, i in english
        if (document, i) in translated
    ]


ELEMENT = re.compile(r'<(p|h[1-6])\b[^>]*\bid="([^"]+)"[^>]*>(.*?)</\1>', re.DOTALL)


def _elements(root: Path) -> Iterator[tuple[tuple[str, str], str]]:
    """((document, element id), text) of the html files below usr/share/libreoffice/help/LANGUAGE/text."""
    read = 0
    for base in sorted(root.glob("usr/share/libreoffice/help/*/text")):
        for file in sorted(base.rglob("*.html")):
            read += file.stat().st_size
            if read > LARGEST:
                raise RefusedError(f"{base}: more than {LARGEST:,} bytes of help")
            document = file.relative_to(base).as_posix()
            for _, name, inner in ELEMENT.findall(file.read_text(encoding="utf-8", errors="replace")):
                yield (document, name), plain(inner)


def plain(inner: str) -> str:
    """An html element's text on one line."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", "", re.sub(r"<br\b[^>]*>", " ", inner))).split())


# ---------------------------------------------------------------- descriptions of packages


def update(work: Path, languages: str) -> Path:
    """The folder below `work` into which apt's lists of packages and of their descriptions are downloaded."""
    lists = work / "lists"
    (lists / "partial").mkdir(parents=True)
    options = [
        f"Dir::State::Lists={lists}",
        f"Acquire::Languages={languages}",
        "Dir::Cache::pkgcache=",
        "Dir::Cache::srcpkgcache=",
    ]
    _run(["apt-get", *(word for option in options for word in ("-o", option)), "update"], work)
    return lists


def source_packages(lists: Path) -> dict[str, str]:
    """Package -> the source package that it is built from."""
    sources: dict[str, str] = {}
    for record in listed(lists, "*_Packages*"):
        sources[record.get("Package", "")] = record.get("Source", record.get("Package", "")).split(" ")[0]
    return sources


def description_texts(work: Path, language: str) -> list[Pair]:
    """All pairs of the descriptions, from lists that are downloaded to `work`."""
    lists = update(work, f"en,{language}")
    sources = source_packages(lists)
    field = f"Description-{language}"
    texts = {
        record["Description-md5"]: record[field]
        for record in listed(lists, f"*_Translation-{language.replace('_', '%5f')}*")
        if field in record and "Description-md5" in record
    }
    pairs: list[Pair] = []
    for record in listed(lists, "*_Translation-en*"):
        translated = texts.pop(record.get("Description-md5", ""), None)
        if translated is not None:
            document = "package " + sources.get(record["Package"], record["Package"])
            pairs += ((document, *pair) for pair in aligned(record.get("Description-en", ""), translated))
    return pairs


def listed(folder: Path, pattern: str) -> Iterator[dict[str, str]]:
    """The records of apt's lists of this name, however they are compressed."""
    for file in sorted(folder.glob(pattern)):
        command = ["/usr/lib/apt/apt-helper", "cat-file", str(file)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8", errors="replace") as cat:
            assert cat.stdout is not None
            yield from records(cat.stdout)


def aligned(english: str, translated: str) -> list[tuple[str, str]]:
    """Paragraphs of two descriptions that correspond: the first lines; the others where both have as many; the items of
    a list where both have as many."""
    ours, theirs = paragraphs(english), paragraphs(translated)
    if len(ours) != len(theirs):
        ours, theirs = ours[:1], theirs[:1]
    pairs: list[tuple[str, str]] = []
    for a, b in zip(ours, theirs):
        pairs += zip(a, b) if len(a) == len(b) else [(" ".join(a), " ".join(b))]
    return pairs


def paragraphs(description: str) -> list[list[str]]:
    """A description as apt keeps it: its first line, then its paragraphs, each as its items."""
    first, *lines = description.split("\n")
    found: list[list[str]] = [[first.strip()], []]
    for line in lines:
        text = line.strip()
        if text == ".":
            found.append([])
        elif item := re.match(r"[*+o-]\s+(.*)", text):
            found[-1].append(item[1])
        elif found[-1]:
            found[-1][-1] += f" {text}"
        else:
            found[-1].append(text)
    return [paragraph for paragraph in found if paragraph]


# ---------------------------------------------------------------- what is kept


def keep(texts: Iterable[Pair], target: str) -> Iterator[Pair]:
    """Those pairs that are good to learn from, each English text once."""
    seen: set[str] = set()
    for document, english, translated in texts:
        english, translated = " ".join(english.split()), " ".join(translated.split())
        known = english.casefold()
        if known not in seen and good(english, translated, target):
            seen.add(known)
            yield document, english, translated


def good(english: str, translated: str, target: str) -> bool:
    """Whether the second text may be a translation of the first into this language."""
    a, b = len(english), len(translated)
    if not (2 <= a <= LONGEST and 1 <= b <= LONGEST) or english.casefold() == translated.casefold():
        return False
    low, high = PROPORTION[target]
    if not a * low - SLACK <= b <= a * high + SLACK or not re.search(r"[^\W\d_]{2}", english):
        return False
    if target == "zh":
        return CJK.search(translated) is not None
    words = re.findall(r"[^\W\d_]+", translated.lower())
    same = set(re.findall(r"[^\W\d_]+", english.lower()))
    untranslated = len(words) >= 4 and sum(word in same for word in words) > 0.7 * len(words)
    return not untranslated and sum(word in ENGLISH for word in words) <= 0.12 * len(words)
