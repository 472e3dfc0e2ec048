# What a contributor runs. The first use makes the virtual environment .venv, and so does the
# first one after a change of pyproject.toml. `make test PYTHON=python3.12` chooses the Python.

PYTHON := python3 python3.13 python3.12 python3.11 python
BIN := .venv/bin
# two at a time: much of what the tests do is waiting for servers
PARALLEL := -n 2 --dist worksteal

# the others need what only their own virtual environment has
MEASUREMENTS := $(filter-out benchmarks/applications.py,$(wildcard benchmarks/*.py))

MINUTES := 20
SEED := 1

.DEFAULT_GOAL := help
.PHONY: help test demo lint bench soak model downstream applications test-sa20 test-lowest docs dist clean

help:  ## list these commands
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

test: .venv/.installed  ## run all tests: unit, integration, chaos, e2e
	$(BIN)/pytest $(PARALLEL)

demo: .venv/.installed  ## show an application with and without the package while its server fails
	$(BIN)/python examples/demo

lint: .venv/.installed  ## check style, types, the direction of imports, and the workflows
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

docs: .venv-docs/.installed  ## build the documentation: docs/build/index.html
	.venv-docs/bin/sphinx-build -q -W --keep-going docs docs/build

dist: .venv-dist/.installed  ## build the distributions twice, compare them, and try the wheel
	.venv-dist/bin/python .ci/dist.py dist

bench: .venv/.installed  ## run all measurements
	@for script in $(MEASUREMENTS); do echo "==> $$script"; $(BIN)/python $$script || exit; done

soak: .venv/.installed  ## a server that fails at random for MINUTES (20) a driver, from SEED (1)
	@for driver in psycopg2 psycopg asyncpg; do \
	    $(BIN)/python benchmarks/soak.py $(MINUTES) $(SEED) --driver $$driver || exit; \
	done

model: .venv/.installed  ## every history of a lost COMMIT, of up to 8 events
	$(BIN)/python tests/commit_model.py

downstream: .venv-downstream/.installed  ## the tests of SQLAlchemy and its extensions, plain and with the plugin
	.venv-downstream/bin/python tests/downstream/run.py

applications: .venv-applications/.installed  ## MLflow, Flask-Migrate, Celery, Optuna and FastAPI, plain and with the plugin
	.venv-applications/bin/python benchmarks/applications.py

test-sa20: .venv-sa20/.installed  ## run the tests, but for e2e, on SQLAlchemy 2.0 and Gunicorn 23, and hold the coverage
	.venv-sa20/bin/coverage erase
	.venv-sa20/bin/coverage run -m pytest $(PARALLEL) $(WITHOUT_MODEL) tests/unit tests/integration tests/chaos $(EVENTLET)
	.venv-sa20/bin/coverage combine -q
	.venv-sa20/bin/coverage report

test-lowest: .venv-lowest/.installed  ## run the tests, but for e2e, on the lowest versions that are allowed
	.venv-lowest/bin/pytest $(PARALLEL) tests/unit tests/integration tests/chaos

# it knows nothing of SQLAlchemy, and measuring it takes a quarter of an hour
WITHOUT_MODEL := --ignore tests/unit/test_commit_model.py

# the last Gunicorn with a worker class for eventlet
EVENTLET := "tests/e2e/test_servers.py::test_no_request_fails_with_the_connections_that_it_would_have_used[gunicorn eventlet]"

clean:  ## remove the virtual environments and caches
	rm -rf dist docs/build .venv .venv-* .nox .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

.venv/.installed: packages := --group dev
.venv-dist/.installed: packages := --group dist
.venv-docs/.installed: packages := --group docs
.venv-downstream/.installed: packages := --group tests Flask-Migrate mock
.venv-applications/.installed: packages := --group tests mlflow-skinny Flask-Migrate celery optuna fastapi uvicorn
.venv-sa20/.installed: packages := --group tests 'SQLAlchemy<2.1' 'gunicorn<24'
.venv-lowest/.installed: packages := --group tests --constraint tests/lowest.txt

%/.installed: pyproject.toml
	@for python in $(PYTHON); do \
	    if $$python -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        echo "==> $*: a virtual environment of $$($$python --version)"; \
	        exec $$python -m venv $*; \
	    fi; \
	done; \
	echo "Python 3.11 or newer with its venv module is needed; tried: $(PYTHON)." >&2; \
	echo "On Debian and Ubuntu: apt-get install python3-venv" >&2; \
	exit 1
	@echo "==> $*: installing the package and what its tests need; this may take a minute"
	@$*/bin/python -m pip install -qq --upgrade 'pip>=25.1'
	@$*/bin/python -m pip install -qq --editable . $(packages)
	@$*/bin/python tests/ensure_postgres.py
	@touch $@
