"""Shapes in public forwards (jaxtyping) are checked at run time, in the tests only.

One thread: what the tests compute is small, and threads that wait for each other on a busy machine cost minutes.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, and for the processes that tests start

import jaxtyping

MODELS = ["nn", "basics", "vision", "language", "speech", "protein", "generative", "frontier"]
jaxtyping.install_import_hook([f"etude.{package}" for package in MODELS], "beartype.beartype")
