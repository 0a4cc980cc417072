# The commands that README names. Everything runs in .venv, made here by pip alone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TRIED := $(CURDIR)/build/wheel-test
.DEFAULT_GOAL := help
.PHONY: help setup train test test-slow fuzz lint docs bench wheel-test clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.test: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@ $(VENV)/.base

$(VENV)/.docs: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@ $(VENV)/.base

$(VENV)/.all: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[test,lint,bench]'
	touch $@ $(VENV)/.test $(VENV)/.base

help:                          ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.all            ## make .venv with everything: library, tests, linters, benchmarks
	@echo "done; now: source $(BIN)/activate"

train: $(VENV)/.base           ## run the default: train, predict and evaluate on a synthetic cohort
	$(BIN)/python train.py

test: $(VENV)/.test            ## run the fast tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 -m "not slow and not gpu"

test-slow: $(VENV)/.test       ## run the tests that train for minutes
	$(BIN)/python -m pytest -m "slow and not gpu"

fuzz: $(VENV)/.test            ## read 100,000 odd or damaged files and words; INPUTS=… sets another number
	FUZZ_INPUTS=$(or $(INPUTS),100000) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --timeout 7200 tests/fuzz

lint: $(VENV)/.all             ## check style and types: ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.docs            ## build the documentation site into build/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/.all            ## time our parts beside their peers; DATA=<open_ms_data> adds real files
	for script in losses networks preprocessing; do $(BIN)/python benchmarks/$$script.py || exit 1; done
	if [ -n "$(DATA)" ]; then $(BIN)/python benchmarks/evaluation.py --data "$(DATA)" \
	  && $(BIN)/python benchmarks/inference.py --root "$(DATA)"; fi

wheel-test:                    ## build the wheel, and train three steps from it outside the clone
	rm -rf dist $(TRIED)
	$(PYTHON) -m venv $(TRIED)
	$(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir dist .
	$(TRIED)/bin/python -m pip install --quiet dist/*.whl
	cd $(TRIED) && bin/tversky-seg train trainer.max_steps=3 output_dir=run

clean:                         ## remove the environment and builds; keep the runs
	rm -rf $(VENV) build dist
