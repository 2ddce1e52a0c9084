# Each target does its own set-up: a virtual environment in .venv with the pinned dependencies.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help demo test lint format types benchmark clean

help:
	@echo "make demo       distil a network on real images, and write a page (a few minutes)"
	@echo "make test       the whole test suite"
	@echo "make lint       ruff and mypy"
	@echo "make format     format the code"
	@echo "make benchmark  measure; results in benchmarks/results/"
	@echo "make clean      remove the virtual environment and caches"

demo: .venv/ready
	$(BIN)/eyeline demo $(if $(findstring overwrite,$(ARGS))$(findstring resume,$(ARGS)),,--resume true) $(ARGS)

test: .venv/ready-dev
	$(BIN)/python -m pytest -n 2 --dist loadgroup $(ARGS)

lint: .venv/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/ready-dev
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

benchmark: .venv/ready-dev
	$(PIP) torchdistill
	$(BIN)/python benchmarks/run.py $(ARGS)

.venv/python:
	@test -n "$(PYTHON)" || { echo "eyeline needs Python 3.11 or newer; set PYTHON=/path/to/python3.x"; exit 1; }
	@echo "Setting up .venv with $$($(PYTHON) --version) ..."
	@$(PYTHON) -m venv .venv || { echo "no virtual environment could be made; on Debian: apt install python3-venv"; exit 1; }
	@touch $@

.venv/ready: .venv/python pyproject.toml constraints.txt
	@echo "Installing the pinned dependencies (PyTorch is large: some minutes) ..."
	@$(PIP) --editable .
	@touch $@

.venv/ready-dev: .venv/ready
	@$(PIP) --editable '.[dev]'
	@touch $@

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
