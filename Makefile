# The two commands of the README, and what CI and developers call. Nothing here that a person could not type.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RESULTS ?= results
REPORTS ?= reports
SWEEP ?= $(shell nvidia-smi -L 2>/dev/null | grep -q GPU && echo this_machine || echo quickstart)

.PHONY: report test test-fast lint types wheel clean

report: $(VENV)/installed          ## measure this machine (GPUs, else CPU ranks) and write the report
	$(BIN)/python -m xdit_bench -m +sweeps=$(SWEEP) results_dir=$(RESULTS) reports_dir=$(REPORTS)

test: $(VENV)/installed lint       ## lint, import contracts and all tests this machine can run
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

test-fast: $(VENV)/installed       ## without the slow ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow"

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/installed
	$(BIN)/mypy

wheel: $(VENV)/installed
	$(BIN)/python -m build --wheel

$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache
