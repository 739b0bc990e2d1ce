"""Sequences of tokens: translation, language models, encoders."""
