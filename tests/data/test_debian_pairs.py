"""Pairs out of Debian: how texts are found, matched and kept, on files as the packages and apt's lists have them."""

import subprocess

import pytest

from etude.data import debian_pairs as made
from etude.data import fetch, remotes
from etude.errors import MissingError

PAGE = """<html><body><h1 id="hd_1" dir="auto">{0}</h1>
<p id="par_2" class="paragraph">{1} <span class="emph">{2}</span>&nbsp;&amp;<br>x</p>
<p class="no-id">nothing</p></body></html>"""


def test_elements_of_a_help_page(tmp_path):
    for name, words in (("en", ("Title", "Open the", "File menu")), ("de", ("Titel", "Öffnen Sie das", "Menü Datei"))):
        folder = tmp_path / name / "usr/share/libreoffice/help" / name / "text/scalc"
        folder.mkdir(parents=True)
        (folder / "page.html").write_text(PAGE.format(*words), encoding="utf-8")
    english, german = (dict(made._elements(tmp_path / name)) for name in ("en", "de"))
    assert english == {
        ("scalc/page.html", "hd_1"): "Title",
        ("scalc/page.html", "par_2"): "Open the File menu & x",
    }
    assert german["scalc/page.html", "par_2"] == "Öffnen Sie das Menü Datei & x"


def test_paragraphs_and_items():
    english = "short line\n First paragraph\n goes on.\n .\n It has:\n  * one thing,\n    and more\n  * another."
    assert made.paragraphs(english) == [
        ["short line"],
        ["First paragraph goes on."],
        ["It has:", "one thing, and more", "another."],
    ]
    german = "Kurzzeile\n Erster Absatz.\n .\n Es hat:\n  * ein Ding\n  * ein anderes."
    assert made.aligned(english, german)[1:] == [
        ("First paragraph goes on.", "Erster Absatz."),
        ("It has:", "Es hat:"),
        ("one thing, and more", "ein Ding"),
        ("another.", "ein anderes."),
    ]
    assert made.aligned(english, "Kurzzeile\n Alles in einem.") == [("short line", "Kurzzeile")]
    fewer = "Kurzzeile\n Erster Absatz.\n .\n Es hat:\n  * beides."
    assert made.aligned(english, fewer)[-1] == ("It has: one thing, and more another.", "Es hat: beides.")


@pytest.mark.parametrize(
    ("english", "translated", "target", "kept"),
    [
        ("Open the file.", "Öffnen Sie die Datei.", "de", True),
        ("Open the file.", "Open the file.", "de", False),
        ("Options", "OPTIONS", "de", False),
        ("This is one of the tools that you can use.", "This is one of the Tools that you can use!", "de", False),
        ("Returns a value.", "The value that is returned by the function of which", "de", False),
        ("Open", "Öffnen Sie bitte unbedingt zuerst diese eine Datei", "de", False),
        ("1234 + 5", "1234 + 6", "de", False),
        ("Click the button.", "单击按钮。", "zh", True),
        ("Click the button.", "Click this button.", "zh", False),
        ("x" * 700, "y" * 700, "de", False),
    ],
)
def test_what_is_good(english, translated, target, kept):
    assert made.good(english, translated, target) == kept


def test_an_english_text_is_kept_once_whatever_its_case_and_spaces():
    rows = [("a", "Open it  now", "Jetzt öffnen"), ("b", "open it now", "Öffne es"), ("b", "Close it", "Schließen")]
    assert list(made.keep(rows, "de")) == [("a", "Open it now", "Jetzt öffnen"), ("b", "Close it", "Schließen")]


def test_made_from_packages_and_lists(tmp_path, monkeypatch):
    """The whole way, with apt-get and dpkg-deb played: pairs.tsv alone is left."""
    md5 = "0123456789abcdef0123456789abcdef"

    def play(command, **options):
        work = options["cwd"]
        if command[:2] == ["apt-get", "download"]:
            (work / f"{command[-1]}_1_all.deb").touch()
        elif command[0] == "dpkg-deb":
            language = command[-1]
            words = ("Some title", "Open the", "menu") if language == "en-us" else ("Ein Titel", "Öffnen Sie", "Menü")
            folder = work / language / "usr/share/libreoffice/help" / language / "text"
            folder.mkdir(parents=True)
            (folder / "a.html").write_text(PAGE.format(*words), encoding="utf-8")
        else:
            assert command[-1] == "update" and f"Dir::State::Lists={work / 'lists'}" in command
            lists = work / "lists"
            (lists / "x_Packages").write_text("Package: tool-bin\nSource: tool (1.0)\n\n")
            head = f"Package: tool-bin\nDescription-md5: {md5}\n"
            (lists / "x_i18n_Translation-en").write_text(f"{head}Description-en: useful tool\n Does much.\n\n")
            (lists / "x_i18n_Translation-de").write_text(f"{head}Description-de: nützliches Werkzeug\n Kann viel.\n\n")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(made.subprocess, "run", play)
    monkeypatch.setattr(made.shutil, "which", lambda tool: tool)
    monkeypatch.setattr(made, "listed", lambda folder, pattern: (
        record for file in sorted(folder.glob(pattern)) for record in made.records(file.read_text().splitlines())
    ))  # fmt: skip
    folder = tmp_path / "made"
    folder.mkdir()
    made.make("de", folder)
    assert [path.name for path in folder.iterdir()] == ["pairs.tsv"]
    assert (folder / "pairs.tsv").read_text(encoding="utf-8").splitlines() == [
        "a.html\tSome title\tEin Titel",
        "a.html\tOpen the menu & x\tÖffnen Sie Menü & x",
        "package tool\tuseful tool\tnützliches Werkzeug",
        "package tool\tDoes much.\tKann viel.",
    ]


def test_a_failure_is_told_in_a_line(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 100, "", "E: Unable to locate package\n")
    monkeypatch.setattr(made.subprocess, "run", lambda *_, **__: failed)
    monkeypatch.setattr(made.shutil, "which", lambda tool: tool)
    with pytest.raises(MissingError, match="Unable to locate") as caught:
        made.make("de", tmp_path)
    assert "apt-get update" in caught.value.hint
    monkeypatch.setattr(made.shutil, "which", lambda tool: None)
    with pytest.raises(MissingError, match="no apt-get"):
        made.make("de", tmp_path)


def test_only_one_way_and_never_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("ETUDE_HOME", str(tmp_path))
    with pytest.raises(MissingError, match="ETUDE_OFFLINE"):
        fetch.get("en-de", offline=True)
    assert remotes.REMOTES["en-zh"].made_by == ("official",)
