# Everything runs in .venv, which the first target creates. Only Python 3.11+ and make are needed.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OLD_SB3 := $(VENV)/sb3-2.0
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
export OMP_WAIT_POLICY ?= PASSIVE
# Most of what is installed is never imported.
export PIP_NO_COMPILE ?= 1

.PHONY: demo test test-all lint types bench bench-methods fixtures runtime-wheel clean

demo: $(VENV)/.demo  ## The whole job on the bundled teacher: a proved, exported family and its report.
	$(BIN)/limbeck demo

test: $(VENV)/.test lint types  ## Lint, types, import layers, unit, contract and end-to-end tests.
	$(BIN)/python -m pytest -n auto --dist worksteal

test-all: $(VENV)/.test-all lint types  ## The same and everything marked slow: hours, and 3 GB of environments.
	$(BIN)/python -m pytest -n auto --dist worksteal -m ""

lint: $(VENV)/.test
	$(BIN)/ruff check src tests benchmarks recipes runtime
	$(BIN)/ruff format --check src tests benchmarks recipes runtime
	$(BIN)/lint-imports

types: $(VENV)/.test
	$(BIN)/mypy

bench: $(VENV)/.test  ## Every published number again, into benchmarks/results/.
	$(BIN)/python benchmarks/run_all.py

bench-methods: $(VENV)/.test  ## Imitation methods compared on five tasks, into docs/results.md; hours, goes on where it was stopped.
	$(BIN)/python benchmarks/methods.py
	$(BIN)/python benchmarks/methods_picture.py

fixtures: $(VENV)/.fixtures  ## The teacher files under tests/fixtures again, by the real programs; FIXTURES="NAME ..." for some.
	SB3_OLD_PYTHON=$(OLD_SB3)/bin/python $(BIN)/python tests/fixtures/make_fixtures.py $(FIXTURES)

runtime-wheel: $(VENV)/.test  ## The small second wheel, limbeck-runtime, into dist/, and the source distribution it is built from.
	$(PIP) install build
	$(BIN)/python -m build --outdir dist ./runtime

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist src/*.egg-info runtime/build runtime/*.egg-info

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

$(VENV)/.fixtures: $(VENV)/.test
	$(PIP) install -c constraints.txt sb3-contrib rsl-rl-lib keras minari h5py onnx onnxscript minigrid MinAtar
	test -x $(OLD_SB3)/bin/python || $(PYTHON) -m venv $(OLD_SB3)
	bash scripts/install_torch.sh $(OLD_SB3)/bin/python
	$(OLD_SB3)/bin/python -m pip --quiet install -c constraints.txt 'stable-baselines3==2.0.0' 'gymnasium==0.28.1' 'numpy<2'
	touch $@

$(VENV)/.test-all: $(VENV)/.test
	@echo "installing what only the long tests need"
	$(PIP) install -c constraints.txt -e '.[test-all]'
	touch $@
