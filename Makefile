# Everything sets itself up: a machine with Python >= 3.11 (and pip) is enough.
#
#   make quickstart     train a small agent on the CPU
#   make search         a real language model learns to search Wikipedia, two steps of it
#   make test           the test suite
#
# Overridable: PYTHON=python3.12 (with a VENV of its own), VENV=path, PYTEST_ARGS="-k checkpoint", VECTORS=path.

PYTHON ?= python3
VENV ?= .venv
VECTORS ?= ../shared/vectors
# JAX compiles on one core and tests are many: workers pay off. More than 4 fight for memory.
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 2); \
	if [ "$$n" -gt 4 ]; then echo 4; else echo "$$n"; fi)
PYTEST_ARGS ?=

BIN := $(VENV)/bin
# A file stays with one worker, which compiles what its tests share; files come in their order, as those
# of few tests are not the short ones.
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help quickstart search test test-all test-fast lint types conformance clean same-python

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: $(VENV)/.installed ## Train a small agent on the CPU, evaluate it, and draw its curves.
	@echo "==> Training the quickstart agent (a few minutes on 2 cores)"
	@$(BIN)/steprl train configs/quickstart.yaml --overwrite

search: $(VENV)/.installed-search ## Train SmolLM2-135M as a search agent for two steps, on the CPU.
	@echo "==> Training the search agent (up to 20 minutes on 2 cores)"
	@$(BIN)/steprl train configs/wiki_search_smollm2.yaml train.steps=2 --overwrite

test: $(VENV)/.installed-dev ## Run every kind of test; of long lists of methods and scripts, some.
	@echo "==> Running the tests with $(WORKERS) workers"
	@$(PYTEST) -m "not full" $(PYTEST_ARGS)

test-all: $(VENV)/.installed-dev ## Run all tests, every method, notebook and script included.
	@echo "==> Running all tests with $(WORKERS) workers"
	@$(PYTEST) $(PYTEST_ARGS)

test-fast: $(VENV)/.installed-dev ## Run the tests that are marked neither slow nor full.
	@echo "==> Running the fast tests with $(WORKERS) workers"
	@$(PYTEST) -m "not slow and not full" $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev ## Check style and formatting.
	@echo "==> Checking style with ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev ## Check types.
	@echo "==> Checking types with mypy"
	@$(BIN)/mypy

conformance: $(VENV)/.installed-dev ## Compare with recorded values of other implementations (VECTORS=path).
	@if [ ! -d "$(VECTORS)" ]; then \
	  echo "error: no recorded values in $(VECTORS); pass VECTORS=path" >&2; exit 1; fi
	@echo "==> Comparing with the recorded values in $(VECTORS)"
	@JAX_PLATFORMS=cpu $(BIN)/python benchmarks/conformance.py "$(VECTORS)"

clean: ## Remove the environment and all caches; runs are kept.
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp that is newer than pyproject.toml says that the environment is up to date.
$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "error: there is no '$(PYTHON)'; name one, e.g. make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: steprl needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1);" \
	    "name another, e.g. make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "==> Creating the environment $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { rm -f $@; exit 1; }

# An environment keeps the Python that it was made with: another that is asked for needs another one.
same-python: | $(VENV)/bin/python
	@if [ "$(origin PYTHON)" = "command line" ]; then \
	  of='import sys; print("%d.%d" % sys.version_info[:2])'; \
	  want=$$($(PYTHON) -c "$$of") && have=$$($(BIN)/python -c "$$of") || exit 1; \
	  if [ "$$want" != "$$have" ]; then \
	    echo "error: $(VENV) was made with Python $$have; add VENV=.venv$$want for one with $$want," \
	      "or remove it first: make clean" >&2; exit 1; \
	  fi; \
	fi

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python same-python
	@echo "==> Installing steprl and what it needs (about a minute)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.installed-search: pyproject.toml | $(VENV)/bin/python same-python
	@echo "==> Installing steprl with search and GGUF files (about a minute)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[search,gguf]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python same-python
	@echo "==> Installing steprl with its test tools (about a minute)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/.installed
