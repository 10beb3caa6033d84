.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PACKAGES := infra operators tokenize_offline packing trainer pipelines

.PHONY: help setup lint check test test-fast demo bench clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(READY)  ## make .venv with everything, at the versions of constraints.txt

$(READY): pyproject.toml constraints.txt
	command -v $(PYTHON) >/dev/null || { echo "make: no $(PYTHON) here: install Python 3.11 or newer, or say make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[all,dev]'
	touch $(READY)

lint: setup  ## format the code and fix what can be fixed
	$(BIN)/ruff format $(PACKAGES) tests
	$(BIN)/ruff check --fix $(PACKAGES) tests

check: setup  ## formatting, lint and types; changes nothing
	$(BIN)/ruff format --check $(PACKAGES) tests
	$(BIN)/ruff check $(PACKAGES) tests
	$(BIN)/mypy

test: setup  ## all tests
	$(BIN)/pytest

test-fast: setup  ## the tests that take seconds
	$(BIN)/pytest -m 'not slow'

demo: setup  ## curate, tokenize, pack and train on real photographs and clips
	$(BIN)/python -m pipelines.demo

bench: setup  ## the measurements of BENCHMARKS.md that need no folder of yours
	$(BIN)/python -c "from pipelines.demo_source import write_demo_source; write_demo_source('workspace/demo-photos')"
	$(BIN)/python tests/benchmarks/scoring.py workspace/demo-photos 5
	$(BIN)/python tests/benchmarks/models.py workspace/demo-photos 3
	$(BIN)/python tests/benchmarks/ray_overhead.py
	$(BIN)/python tests/benchmarks/decisions.py 100
	$(BIN)/python tests/benchmarks/duplicates.py phase
	$(BIN)/python tests/benchmarks/what_if.py 10
	$(BIN)/python tests/benchmarks/quantizer.py
	$(BIN)/python tests/benchmarks/extraction.py workspace/demo-photos
	$(BIN)/python tests/benchmarks/packing_strategies.py
	$(BIN)/python tests/benchmarks/planner.py --documents 1000000
	$(BIN)/python tests/benchmarks/tiles.py
	$(BIN)/python tests/benchmarks/plan_out_of_core.py
	$(BIN)/python tests/benchmarks/slices.py
	$(BIN)/python tests/benchmarks/shuffle.py
	$(BIN)/python tests/benchmarks/reader.py
	$(BIN)/python tests/benchmarks/real_steps.py
	$(BIN)/python tests/benchmarks/step_shares.py
	$(BIN)/python tests/benchmarks/loss_memory.py

clean:  ## remove the demo's workspace and all caches, keep .venv
	rm -rf workspace/demo workspace/demo-photos workspace/demo-clips workspace/demo-photos-clips .mypy_cache .ruff_cache .pytest_cache .hypothesis build
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
