# `make run` and `make test` do all set-up themselves; nothing but Python 3.11+, make and a package index is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Real data sets for the tests and for the default run's MNIST test score; absent is fine (tests skip with a reason).
PIPELINE_DATA ?= $(abspath $(wildcard ../shared/data))
ifneq ($(PIPELINE_DATA),)
export PIPELINE_DATA
endif
RUN ?= runs/digits

.PHONY: run test test-slow check setup clean
setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "train-to-edge needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[train,sweep,headless,dev]'
	touch $@

run: setup
	$(BIN)/pipeline all --run $(RUN)

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info
