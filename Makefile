# Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= python3.11
BIN := .venv/bin
# Two files of tests at a time, in their order: many of them wait for processes to start.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder
# key=value …: changes to jobs/quickstart.yaml for cluster-quickstart.
SETTINGS ?=

.PHONY: install quickstart cluster cluster-quickstart cluster-down test test-all lint clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	@echo "installing into .venv (a few minutes the first time) …"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

install: .venv/installed

quickstart: install ## the whole loop on this machine; again: finds everything done
	$(BIN)/pastry run jobs/quickstart.yaml

cluster: install ## a Ray cluster of two nodes on this machine, with token authentication; again: says that it is up
	$(BIN)/python jobs/local_cluster.py up

cluster-down: ## ends it, and no other Ray
	@test ! -e .cluster || $(BIN)/python jobs/local_cluster.py down

# Ends the cluster whether the run succeeds or not, and ends with the run's exit code.
cluster-quickstart: cluster ## the quickstart as a Ray job on that cluster
	@trap '$(BIN)/python jobs/local_cluster.py down' EXIT INT TERM; . .cluster/env && \
		$(BIN)/ray job submit --working-dir . -- python jobs/past.py --config jobs/quickstart.yaml $(SETTINGS)

test: install ## the unit tests, some minutes at most
	$(PYTEST) -m "not slow"

test-all: install ## those that start Ray, train and serve as well
	$(PYTEST)

lint: install
	$(BIN)/ruff check .

clean: cluster-down ## runs, MLflow data and the virtual environment
	rm -rf runs .venv
