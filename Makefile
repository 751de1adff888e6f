# Everything here sets itself up: it needs Python 3.11 or newer and the package index, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help run run-cluster test lint format bench clean

help:  ## say what can be done
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 13

run: $(VENV)/installed  ## serve on an embedded directory, on this machine alone
	@exec $(BIN)/python run_local.py

run-cluster: $(VENV)/installed  ## serve from several processes over a PostgreSQL, DATABASE_URL
	@exec $(BIN)/python run_cluster.py

test: $(VENV)/installed  ## run all tests
	$(BIN)/python -m pytest -n 5 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/installed  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy .

format: $(VENV)/installed  ## put the code into its format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/installed  ## measure what the service must reach; takes 6 to 8 minutes
	$(BIN)/python -m bench

clean:  ## remove what the other targets made, but for the batches in hospitals.db
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/installed: requirements.txt requirements-postgres.txt requirements-dev.txt embedded_directory/requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name it with PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements-dev.txt
	@touch $@
