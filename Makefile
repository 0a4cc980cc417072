# The commands that README names. Everything runs in .venv, made here by pip alone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
.PHONY: setup train test test-slow lint bench clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.test: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@ $(VENV)/.base

$(VENV)/.all: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[test,lint,bench]'
	touch $@ $(VENV)/.test $(VENV)/.base

setup: $(VENV)/.all            ## .venv with everything: library, tests, linters, benchmarks

train: $(VENV)/.base           ## the default run: a synthetic cohort, trained, predicted and judged
	$(BIN)/python train.py

test: $(VENV)/.test            ## the fast tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 -m "not slow and not gpu"

test-slow: $(VENV)/.test       ## the tests that train for minutes
	$(BIN)/python -m pytest -m "slow and not gpu"

lint: $(VENV)/.all             ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.all            ## ours and the peer interleaved; with DATA=<open_ms_data> on real files too
	for script in losses networks preprocessing; do $(BIN)/python benchmarks/$$script.py || exit 1; done
	if [ -n "$(DATA)" ]; then $(BIN)/python benchmarks/evaluation.py --data "$(DATA)" \
	  && $(BIN)/python benchmarks/inference.py --root "$(DATA)"; fi

clean:                         ## forget the environment, keep the runs
	rm -rf $(VENV)
