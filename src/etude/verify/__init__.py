"""Comparison with reference implementations, through the importer that users run."""
