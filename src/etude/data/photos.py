"""The set "photos": 23 photographs that two of Debian's packages of desktop backgrounds carry, 1280x1024 to 2560x1920
pixels, JPEG, one of them grey. No two show the same scene: each file is taken once, not by the links to it of other
sizes. Whole photographs are held out, so that nothing of a test picture is ever trained on.
"""

from pathlib import Path

from etude.data import fetch, remotes

TEST = ("ColorfulCups", "Dune", "EveningGlow", "FallenLeaf", "YellowFlower")
VALIDATION = ("LadyBird", "OneStandsOut")
"""Held out to choose weights by; all others but the test's are trained on."""
SPLITS = ("train", "validation", "test")


def files(split: str | None = None, path: str = "") -> dict[str, Path]:
    """Name -> file of the photographs of a split ("train", "validation" or "test"), or of all, in the names' order.

    `path`: a folder that holds them as the packages do, instead of the fetched one. MissingError where they are not on
    this machine.
    """
    debian = remotes.REMOTES["photos"].debian
    assert debian is not None
    folder = Path(path).expanduser() if path else fetch.path("photos")
    found = {name_of(file.name): folder / file.name for file in debian.files}
    return {name: found[name] for name in sorted(found) if split is None or split_of(name) == split}


def name_of(file: str) -> str:
    """ "backgrounds/mate/nature/Aqua.jpg" -> "Aqua", "wallpapers/Path/contents/images/2560x1600.jpg" -> "Path" """
    parts = file.split("/")
    return parts[1] if parts[0] == "wallpapers" else parts[-1].removesuffix(".jpg")


def split_of(name: str) -> str:
    """The split that a photograph belongs to."""
    return "test" if name in TEST else "validation" if name in VALIDATION else "train"
