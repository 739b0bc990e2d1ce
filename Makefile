# make demo   set up .venv and train the quick start
# make test   set up .venv with the test extra and run the suite, one process a core and four at most
# make test-avx2  the tests that compute, as on a CPU with AVX2 and nothing newer
# make check  lint, format and types
# make slow   the tests that take minutes (30 kills, a long fuzz)
PYTHON ?= python3
BIN := .venv/bin
PARALLEL := -n auto --maxprocesses 4 --dist worksteal
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 FBGEMM_ENABLE_INSTRUCTIONS=AVX2
NUMERIC := $(addprefix tests/,basics generative language nn recipes tasks verify vision \
	bench/test_gpt_quality.py engine/test_precision.py engine/test_trainer.py test_cpu.py test_opus.py)

.PHONY: demo test test-avx2 check slow clean

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
	$(BIN)/python -m pytest -q $(PARALLEL)

test-avx2: .venv/installed-test
	$(AVX2) $(BIN)/python -m pytest -q $(PARALLEL) $(NUMERIC)

check: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

slow: .venv/installed-test
	$(BIN)/python -m pytest -q -s -m slow

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis
