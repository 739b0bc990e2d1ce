"""`report.html`: a run's page, drawn from the files of its directory alone, without torch."""

from etude.report.page import render, write

__all__ = ["render", "write"]
