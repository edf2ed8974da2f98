# Everything a new machine needs: Python 3.11 or newer, git, make, and for the data either the
# official mirrors or the package clients npm and apt-get.

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help reproduce test check format clean

help:
	@echo "make reproduce   the paper's digit study on all 10,000 test images: runs/mnist/"
	@echo "make test        the whole test suite"
	@echo "make check       formatting, lint, types"
	@echo "make format      format and mend what can be mended"
	@echo "make clean       remove the environment and what the tools left; runs/ stays"

# torch comes first and by its exact version: nothing after it may bring another one.
.venv/runtime: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) torch==2.13.0
	$(INSTALL) --editable .
	@touch $@

.venv/dev: .venv/runtime
	$(INSTALL) --editable '.[dev]'
	@touch $@

reproduce: .venv/runtime
	$(BIN)/leery reproduce mnist

# Parallel by processes of one thread each; a file's tests stay together and share what they set up.
test: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile

check: .venv/dev
	$(BIN)/ruff format --check src tests
	$(BIN)/ruff check src tests
	$(BIN)/mypy

format: .venv/dev
	$(BIN)/ruff format src tests
	$(BIN)/ruff check --fix src tests

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache build dist
	find src tests -name __pycache__ -type d -exec rm -rf {} +
