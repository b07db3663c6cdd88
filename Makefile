# make demo: train real digits with K-FAC, SGD, Adam ... and write a report.
# make test: the whole test suite.
# Both set up a virtual environment first; run again, they reuse it.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
# a process for each core, and one thread in each
TESTS  := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

.DEFAULT_GOAL := help
.PHONY: help demo test smoke check lint types imports constraints clean

help:
	@grep -E '^# make' Makefile | sed 's/^# //'

demo: $(VENV)/.lab
	rm -rf runs/demo
	$(BIN)/natgrad compare digits-mlp --out runs/demo

test: $(VENV)/.dev
	$(TESTS)

# make smoke: every recipe in its smoke profile, on made-up data unless NATGRAD_DATA is set.
smoke: $(VENV)/.dev
	$(TESTS) -m smoke tests/lab/test_smoke.py --durations=3

# make check: format, lint, types and import directions.
check: lint types imports

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.dev
	$(BIN)/mypy

imports: $(VENV)/.dev
	$(BIN)/lint-imports

# make constraints: resolve what is tested with anew (needs uv on the path).
constraints:
	uv pip compile --universal --python-version 3.10 --extra lab --extra dev --extra peers --no-header \
	  --no-annotate pyproject.toml | grep -v -E '^(nvidia|cuda|triton)' > .constraints
	(head -1 constraints.txt; sort -f .constraints) > .renewed
	mv .renewed constraints.txt; rm .constraints

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "natgrad needs Python 3.10 or newer; say which with: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.lab: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install --quiet --constraint constraints.txt --editable '.[lab]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install --quiet --constraint constraints.txt --editable '.[lab,dev]'
	@touch $@ $(VENV)/.lab

clean:
	rm -rf $(VENV) runs build .mypy_cache .ruff_cache .pytest_cache .hypothesis
