# Everything runs in .venv, which the first target creates. Only Python 3.11+ and make are needed.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test test-all lint types bench clean

demo: $(VENV)/.demo  ## The whole job on the bundled teacher: a proved, exported family and its report.
	$(BIN)/limbeck demo

test: $(VENV)/.test lint types  ## Lint, types, import layers, unit, contract and end-to-end tests.
	$(BIN)/python -m pytest -n auto --dist worksteal

test-all: $(VENV)/.test lint types  ## The same and everything marked slow.
	$(BIN)/python -m pytest -n auto --dist worksteal -m ""

lint: $(VENV)/.test
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/lint-imports

types: $(VENV)/.test
	$(BIN)/mypy

bench: $(VENV)/.test  ## Every published number again, into benchmarks/results/.
	$(BIN)/python benchmarks/run_all.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist src/*.egg-info

$(VENV)/.torch: constraints.txt scripts/install_torch.sh
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	bash scripts/install_torch.sh $(BIN)/python
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	@echo "installing Limbeck with what the demo needs"
	$(PIP) install -c constraints.txt -e '.[demo]'
	touch $@

$(VENV)/.test: $(VENV)/.torch pyproject.toml
	@echo "installing Limbeck with everything the tests need"
	$(PIP) install -c constraints.txt -e '.[test]'
	touch $@
