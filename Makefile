# Two commands do everything on a fresh machine with Python 3.11: `make search` and `make test`.

PYTHON  ?= python3.11
VENV    ?= .venv
BIN     := $(VENV)/bin
RESULTS ?= results
PORT    ?= 5000
STACK   ?= $(RESULTS)/stack
# Anything to hand on to the search, such as ARGS="--forget sketch --trials 20".
ARGS    ?=

.DEFAULT_GOAL := help
.PHONY: help setup search test test-faults bench-search bench-sampler bench-scale bench-train bench-data lint format ui up down status lock audit licenses sbom clean

help:  ## list the targets
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */  make \1\t/' | expand -t 24

setup: $(VENV)/.runtime $(VENV)/.stack  ## install what the commands and the stack need into .venv

search: $(VENV)/.runtime  ## search on the built-in demo: forget each of its four domains in turn
	$(BIN)/python pipeline/search.py $(ARGS)

test: $(VENV)/.dev  ## run the tests
	$(BIN)/python -m pytest $(ARGS)

test-faults: $(VENV)/.dev  ## kill searches, nodes, heads and stores, spoil data (an hour)
	$(BIN)/python -m pytest tests -m faults $(ARGS)

bench-search: $(VENV)/.dev  ## trials a minute, against Ray's documented pattern and no Ray
	$(BIN)/python -m tests.benchmarks.search_speed $(ARGS)

bench-sampler: $(VENV)/.dev  ## regret against epochs of samplers, races and transfer, on a recorded table
	$(BIN)/python -m tests.benchmarks.replay $(ARGS)

bench-scale: $(VENV)/.dev  ## what 1,000 trials of no work cost the driver, on 32 executors
	$(BIN)/python -m tests.benchmarks.control_plane $(ARGS)

bench-train: $(VENV)/.dev  ## time a training step against the frozen forward alone
	$(BIN)/python -m tests.benchmarks.train_speed $(ARGS)

bench-data: $(VENV)/.dev  ## images a second of ingest and reading, against the decoder and others
	$(BIN)/python -m tests.benchmarks.data_speed $(ARGS)

lint: $(VENV)/.dev  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev  ## let ruff mend and format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

ui: $(VENV)/.runtime  ## open the MLflow UI on the last results (http://127.0.0.1:5000)
	@test -f $(RESULTS)/mlflow.db || { echo "no results yet: run 'make search' first" >&2; exit 2; }
	$(BIN)/mlflow ui --backend-store-uri sqlite:///$(RESULTS)/mlflow.db --default-artifact-root $(RESULTS)/artifacts --host 127.0.0.1 --port $(PORT)

up: $(VENV)/.runtime $(VENV)/.stack  ## start a production-like stack here: object store, PostgreSQL, MLflow, Ray nodes
	$(BIN)/python infra/stack/stack.py up --folder $(STACK) $(ARGS)

down: $(VENV)/.runtime $(VENV)/.stack  ## stop that stack; its data stay
	$(BIN)/python infra/stack/stack.py down --folder $(STACK)

status: $(VENV)/.runtime $(VENV)/.stack  ## show the stack's addresses and whether each server works
	$(BIN)/python infra/stack/stack.py status --folder $(STACK)

# Exact versions, each with the hashes of its files: what is installed is what was locked.
LOCK = $(UV) pip compile --python-version 3.11 --generate-hashes --quiet --no-header --no-emit-index-url --no-emit-find-links --annotation-style line

lock: $(VENV)/bin/python  ## pin exact versions anew after a change of pyproject.toml
	$(LOCK) pyproject.toml --upgrade -o requirements.txt
	$(LOCK) pyproject.toml --group dev -c requirements.txt -o requirements-dev.txt
	$(LOCK) --group stack -c requirements-dev.txt -o requirements-stack.txt
	$(LOCK) --group adu -c requirements.txt -o requirements-adu.txt

audit: $(VENV)/bin/python  ## compare the locked versions with the known vulnerabilities
	$(UV) tool run --from 'pip-audit==2.*' pip-audit -r requirements.txt --require-hashes --disable-pip

licenses: $(VENV)/.runtime  ## list the licence of every installed package
	$(UV) tool run --from 'pip-licenses==5.*' pip-licenses --python $(BIN)/python --order license

sbom: $(VENV)/bin/python  ## write what the lock holds as a CycloneDX bill of materials
	mkdir -p $(RESULTS)
	$(UV) tool run --from 'cyclonedx-bom==7.*' cyclonedx-py requirements requirements.txt --output-file $(RESULTS)/sbom.json

clean:  ## remove the environment and caches, keep results
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache

# uv installs in seconds what pip takes minutes for; without it on the machine, pip brings it.
UV = $(if $(shell command -v uv),uv,$(BIN)/uv)
# Compiled once, not by the first of many processes, or by each of them where the environment says
# PYTHONDONTWRITEBYTECODE: imports are most of what a worker's start takes.
INSTALL = $(UV) pip install --quiet --compile-bytecode --python $(BIN)/python

$(VENV)/bin/python:
	if command -v uv > /dev/null; then uv venv --quiet --python 3.11 $(VENV); \
	else $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet uv; fi

$(VENV)/.runtime: requirements.txt pyproject.toml | $(VENV)/bin/python
	$(INSTALL) --require-hashes -r requirements.txt
	$(UV) pip install --quiet --python $(BIN)/python --no-deps -e .
	touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.runtime
	$(INSTALL) --require-hashes -r requirements-dev.txt
	touch $@

$(VENV)/.stack: requirements-stack.txt | $(VENV)/bin/python
	$(INSTALL) --require-hashes -r requirements-stack.txt
	touch $@
