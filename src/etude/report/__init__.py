"""`report.html`: the page of a run or a study, drawn from the files of its directory alone, without torch."""

from pathlib import Path

from etude.report import page, parts, study


def render(directory: Path) -> str:
    """The page of the run or study in this directory. MissingError where it holds neither."""
    directory = Path(directory)
    return study.render(directory) if (directory / study.FILE).is_file() else page.render(directory)


def write(directory: Path) -> Path:
    """Render and replace `report.html`. Returns its path."""
    return parts.replace(Path(directory), render(directory))


__all__ = ["render", "write"]
