# `make help` lists the targets. Each one does its own set-up in $(VENV), once: the stamps below are newer than what they install.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
unexport PYTHONDONTWRITEBYTECODE # or every process compiles lattica anew: half the time of a node's start

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SEED ?= 7
ARGS ?=
PEER ?= ray
NOISE = noise or bent or bend or fuzz or damaged or whatever

# pip's own output names every mirror and cache; a line per package is progress enough, and all that follows an error.
PIP_INSTALL = PYTHONUNBUFFERED=1 $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
PIP_PROGRESS = 2>&1 | sed -nu -e 's/^Collecting \([^ ]*\).*/  + \1/p' -e 's/^Processing .*\/\(.*\.whl\).*/  + \1/p' -e '/^ *\(ERROR\|error\)/,$$p'

.PHONY: help demo test test-e2e test-mesh test-nat test-chaos test-foreign check fuzz bench sim sim-long setup setup-rl clean

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: $(VENV)/.rl ## train a policy on lattica's own processes (ARGS="--workers 4 --seed 1")
	@$(BIN)/python examples/rl/ppo.py $(ARGS)

test: $(VENV)/.dev ## all tests but those of the targets below (ARGS="-k name")
	@$(BIN)/python -m pytest -q -n 3 $(ARGS)

test-e2e: $(VENV)/.dev ## only the tests with real processes
	@$(BIN)/python -m pytest -q -m e2e $(ARGS)

test-mesh: $(VENV)/.dev ## the tests with several real nodes on this machine, one after the other
	@$(BIN)/python -m pytest -q -m "mesh and not slow" tests/e2e $(ARGS)

test-nat: $(VENV)/.dev ## only the tests with NATs and bad links in network namespaces (root, nft, gcc)
	@$(BIN)/python -m pytest -q -m nat $(ARGS)

test-chaos: $(VENV)/.dev ## the long end-to-end tests: storms, leaks, long stops; prints what they measured
	@$(BIN)/python -m pytest -q -s -m slow -o faulthandler_timeout=600 tests/e2e $(ARGS)

test-foreign: $(VENV)/.dev ## CPython's, joblib's and dask's own tests over lattica (ARGS="--short", ARGS=dask)
	@$(BIN)/python tests/foreign/run.py $(ARGS)

check: $(VENV)/.dev ## format, lint, strict types
	@$(BIN)/ruff format --check --quiet . || { $(BIN)/ruff format --check .; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy $(wildcard lattica examples)

fuzz: $(VENV)/.dev ## every decoder from noise and bent bytes, 5,000 examples each; 500 of every other law (SEED=7)
	@LATTICA_FUZZ=5000 $(BIN)/python -m pytest -q -o faulthandler_timeout=1200 --hypothesis-seed=$(SEED) tests/mesh tests/codec \
		-k "$(NOISE)" $(ARGS)
	@$(if $(ARGS),,LATTICA_FUZZ=500 $(BIN)/python -m pytest -q -n 3 -o faulthandler_timeout=1200 --hypothesis-seed=$(SEED) \
		-m hypothesis -k "not ($(NOISE))")

bench: $(VENV)/.dev ## lattica beside Ray in its own environment (PEER= without; ARGS="--quick --only task")
	@$(BIN)/python benchmarks/run.py $(if $(PEER),--peer $(PEER)) $(ARGS)

sim: $(VENV)/.dev ## simulated worlds from one seed (SEED=7)
	@$(BIN)/python -m lattica.testing.sim --seed $(SEED) $(ARGS)

sim-long: $(VENV)/.dev ## how near placement is to the best; many seeds, larger worlds, a thousand peers (ARGS="--world community")
	@$(if $(ARGS),,$(BIN)/python -m lattica.testing.placement --seed $(SEED) --seeds 5)
	@$(BIN)/python -m lattica.testing.sim --seed $(SEED) --long $(ARGS)
	@$(if $(ARGS),,$(BIN)/python -m lattica.testing.crowd --peers 1000 --seconds 600 --seed $(SEED))

setup: $(VENV)/.dev ## only the set-up of test and check
setup-rl: $(VENV)/.dev $(VENV)/.rl ## only the set-up of everything

clean: ## remove the environment and everything that was built or cached
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis benchmarks/.envs
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lattica needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	@echo "set-up: a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "set-up: lattica and its development tools"
	@$(PIP_INSTALL) -e '.[dev]' $(PIP_PROGRESS)
	@touch $@

$(VENV)/.rl: pyproject.toml constraints.txt | $(BIN)/python
	@echo "set-up: lattica with gymnasium, torch and matplotlib (some minutes the first time)"
	@$(PIP_INSTALL) -e '.[rl]' $(PIP_PROGRESS)
	@touch $@
