# Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: install quickstart test test-all lint clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	@echo "installing into .venv (a few minutes the first time) …"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

install: .venv/installed

quickstart: install ## the whole loop on this machine; again: finds everything done
	$(BIN)/pastry run jobs/quickstart.yaml

test: install ## the unit tests, some minutes at most
	$(BIN)/python -m pytest -m "not slow"

test-all: install ## those that start Ray, train and serve as well
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check .

clean: ## runs, MLflow data and the virtual environment
	rm -rf runs .venv
