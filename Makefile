# make demo   set up .venv and train the quick start
# make test   set up .venv with the test extra and run the suite
# make check  lint, format and types
# make slow   the tests that take minutes (30 kills, a long fuzz)
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check slow clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "etude needs Python 3.11 or newer: make PYTHON=python3.12 ..."'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

demo: .venv/installed
	$(BIN)/etude train resnet.digits

test: .venv/installed-test
	$(BIN)/python -m pytest -q

check: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

slow: .venv/installed-test
	$(BIN)/python -m pytest -q -s -m slow

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis
