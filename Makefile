# `make demo` and `make test` do everything on a fresh machine with Python 3.11 or newer.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test test-ci container lint types install clean

demo: $(READY)
	$(BIN)/kidseg demo --out demo --overwrite

test: lint types
	$(BIN)/python -m pytest

# The tests that `make test` leaves out so that it ends in minutes; .ci/run runs both.
test-ci: $(READY)
	$(BIN)/python -m pytest -m 'ci and not slow'

# Builds the image, and runs it on a digital patient. What is missing for that is said, and no error.
container: $(READY)
	$(BIN)/python -m pytest -n 0 -rs -m slow tests/test_container.py -k 'labels or small or size'

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/mypy

install: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "kidseg needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@$(BIN)/python -m kidseg.report.vendor || echo "Later: $(BIN)/python -m kidseg.report.vendor"
	@$(BIN)/python tests/axe.py || echo "Later: $(BIN)/python tests/axe.py"
	@touch $(READY)

clean:
	rm -rf $(VENV) demo .pytest_cache .mypy_cache .ruff_cache
