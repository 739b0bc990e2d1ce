"""Where etude keeps files between runs: downloaded data sets, and what was measured of this machine."""

import os
from pathlib import Path


def home() -> Path:
    """ETUDE_HOME, else $XDG_CACHE_HOME/etude, else ~/.cache/etude."""
    if given := os.environ.get("ETUDE_HOME"):
        return Path(given).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "etude"
