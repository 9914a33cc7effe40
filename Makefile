# `make` prints the targets. PYTHON picks the interpreter of a new .venv; TORCH picks another build of the same torch;
# JOBS is the number of tests at a time.

PYTHON ?=
JOBS   ?= 2
TORCH  ?= $(shell grep '^torch==' constraints.txt)

BIN := .venv/bin
# a thread each: tests are of small models, which gain nothing from a second one
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n $(JOBS) --dist worksteal
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help install test slow lint families oldest quickstart real base-model clean

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: .venv/.installed  ## make .venv with harpe in it, in the versions of constraints.txt

# torch goes first and without its dependencies, so that TORCH may carry options which only torch is to see; the second
# line brings in those dependencies with all others. A name that a version manager left behind may exist and not run,
# hence every interpreter is tried by running it.
.venv/.installed: pyproject.toml constraints.txt
	@if [ ! -x $(BIN)/python ]; then \
	  for python in $(or $(PYTHON),python3 python3.12 python3.11) none; do \
	    if [ $$python = none ]; then \
	      echo "harpe needs Python 3.11 or 3.12 with its venv module, and found none. Name one: make install PYTHON=/path/to/python3" >&2; \
	      exit 1; \
	    fi; \
	    if $$python -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2> /dev/null; then \
	      break; \
	    fi; \
	  done; \
	  $$python -m venv .venv; \
	fi
	$(PIP) --no-deps $(TORCH)
	$(PIP) -c constraints.txt -e '.[dev]'
	@touch $@

test: install  ## the tests that take seconds each
	$(PYTEST)

slow: install  ## the distributed, kill, serve and browser tests
	$(PYTEST) -m slow

families: install  ## the tests of every model family, which write docs/families.md
	$(BIN)/python scripts/family_table.py

lint: install  ## ruff, mypy and codespell; changes nothing
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/codespell

oldest:  ## the tests in the oldest versions that pyproject.toml admits (constraints-oldest.txt), under build/oldest
	scripts/oldest_versions.sh

quickstart: install  ## the demonstration on the model inside the package, without downloads
	$(BIN)/harpe quickstart

models/smollm2-135m: | install
	$(BIN)/harpe fetch-model smollm2-135m --out $@

real: models/smollm2-135m  ## a real checkpoint from 8k to 32k, hours on two cores; TEXTS=FOLDER HELD_OUT=FOLDER of long texts
	@if [ -z "$(TEXTS)" ] || [ -z "$(HELD_OUT)" ]; then \
	  echo "make real wants long texts to train on and others to measure with: make real TEXTS=FOLDER HELD_OUT=FOLDER" >&2; exit 1; \
	fi
	$(BIN)/harpe compare recipes/smollm2-135m-cpu.yaml --data "$(TEXTS)" --evaluation-data "$(HELD_OUT)" --jobs 2

base-model: install  ## train that model again from nothing, into build/base-model
	$(BIN)/python scripts/make_base_model.py --out build/base-model

clean:  ## remove what tools have made; .venv and runs stay
	rm -rf build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
