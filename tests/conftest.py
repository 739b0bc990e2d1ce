"""Shapes in public forwards (jaxtyping) are checked at run time, in the tests only."""

import jaxtyping

MODELS = ["nn", "basics", "vision", "language", "speech", "protein", "generative", "frontier"]
jaxtyping.install_import_hook([f"etude.{package}" for package in MODELS], "beartype.beartype")
