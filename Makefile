# [Task]: T014 [From]: specs/requirements.md
# All commands, for people and CI. `make` alone lists them.

PORT ?= 8000
SECONDS ?= 600
HOST ?= 127.0.0.1
# The shell sets USER to the login name. Only a USER on the command line counts.
ifneq ($(origin USER),command line)
USER := demo
endif

# A uv on PATH may be a shim that fails, so it is run to check.
UV := $(shell uv --version >/dev/null 2>&1 && echo uv || echo .uv/bin/uv)
BIN := .venv/bin
export UV_PROJECT_ENVIRONMENT := .venv
# uv looks for Python on PATH, which may lack pyenv's versions.
space := $(subst ,, )
PYENV := $(subst $(space),:,$(wildcard $(HOME)/.pyenv/versions/3.1[3-9]*/bin))
export PATH := $(PATH)$(if $(PYENV),:$(PYENV))
export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport VIRTUAL_ENV

.DEFAULT_GOAL := help
.PHONY: help run token migrate test mutants faults distributed soak e2e fuzz container client
.PHONY: generators bench bench-growth bench-migration bench-distributed check format clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(BIN)/.ready .env ## start the service on SQLite and print a curl command (PORT=8000)
	@$(BIN)/python -m scripts.dev run --host $(HOST) --port $(PORT)

token: $(BIN)/.ready .env ## print a token for development (USER=demo)
	@$(BIN)/python -m scripts.dev token "$(USER)"

test: $(BIN)/.ready ## run the tests, on SQLite and on a real PostgreSQL (COVERAGE=1: with coverage)
	@# Three processes, each with its own PostgreSQL.
	scripts/test.sh -n3 --dist=loadscope $(if $(COVERAGE),--cov --cov-report=term-missing)

mutants: $(BIN)/.ready ## mutate 120 places of the sources and list mutants that no test notices
	$(BIN)/python -m scripts.mutants

faults: $(BIN)/.ready ## break the database, the network and the process; installs PgBouncer and nginx
	tests/faults/install.sh
	@# Three processes, each with PostgreSQL servers of its own.
	scripts/test.sh -n3 --dist=loadfile tests/faults

# Tests of the contract and of a cluster.
DISTRIBUTED := tests/distributed tests/test_isolation.py \
	tests/kit/database/test_search.py tests/test_walks.py \
	tests/test_routes.py tests/kit/test_body.py \
	$(addprefix tests/tasks/test_,conditional.py lists.py paging.py)

distributed: $(BIN)/.ready ## test on a real Citus cluster; installs it if needed
	tests/distributed/install.sh
	TEST_DATABASES=citus scripts/test.sh -n2 --dist=loadscope $(DISTRIBUTED)

soak: $(BIN)/.ready ## run load and random faults, then check every write (SECONDS=600)
	$(BIN)/python tests/faults/soak.py --seconds $(SECONDS)

e2e: $(BIN)/.ready ## test with a real Better Auth in a real browser; installs Chromium if needed
	tests/e2e/install.sh
	$(UV) run --locked --group e2e scripts/test.sh -n2 --dist=loadscope tests/e2e

fuzz: $(BIN)/.ready ## send 20,000 requests that schemathesis generates from the OpenAPI document (QUICK=1: 2,000)
	QUICK=$(QUICK) $(UV) run --locked --group fuzz pytest --timeout=1200 tests/fuzz

container: $(BIN)/.ready ## build the image step by step in a bare Debian and run it; needs root
	tests/container/install.sh
	$(UV) run --locked --group container scripts/test.sh --timeout=600 tests/container

bench: $(BIN)/.ready ## compare the speed with three other implementations, ten minutes (QUICK=1: one)
	@benchmarks/install.sh
	@$(BIN)/python -m benchmarks $(if $(QUICK),--quick)

bench-growth: $(BIN)/.ready ## measure the speed with 10 thousand, 1 million and 10 million tasks, five minutes
	@$(BIN)/python -m benchmarks.growth

bench-migration: $(BIN)/.ready ## measure how long writes wait while ten million tasks are migrated, three minutes
	@$(BIN)/python -m benchmarks.migration

bench-distributed: $(BIN)/.ready ## compare the cost of statements on Citus and on PostgreSQL
	tests/distributed/install.sh
	@$(BIN)/python -m benchmarks.distributed

client: $(BIN)/.ready ## write specs/openapi.json and the TypeScript types made from it
	scripts/client.sh

generators: $(BIN)/.ready ## generate Go and Kotlin clients from it and check them; needs Java
	$(UV) run --locked --group generators pytest tests/generators

migrate: $(BIN)/.ready ## apply migrations to DATABASE_URL (the service also does so at its start)
	$(BIN)/alembic upgrade head

check: $(BIN)/.ready ## check the lock file, format, lint, types, the Dockerfile, and that migrations fit the models
	@# Checks the lock file and the installed packages. --inexact: make e2e installs more.
	$(UV) sync --locked --check --inexact --quiet
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy .
	$(UV) run --quiet --locked --group container hadolint Dockerfile
	@rm -f .check.db && export DATABASE_URL=sqlite:///.check.db BETTER_AUTH_URL=http://localhost && \
		$(BIN)/alembic upgrade head && $(BIN)/alembic check; status=$$?; rm -f .check.db*; exit $$status

format: $(BIN)/.ready ## format the code and apply lint's fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove installed packages and caches; keeps .env and the tasks
	rm -rf benchmarks/fastify/node_modules examples/better-auth/node_modules tests/e2e/clients/node_modules
	rm -rf .venv .uv .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage

.env: | $(BIN)/.ready
	@$(BIN)/python -m scripts.dev env

# Runs again only if a dependency file has changed. uv installs its own Python if 3.13 is missing.
$(BIN)/.ready: uv.lock pyproject.toml .python-version | $(filter .uv/%,$(UV))
	@$(UV) sync --locked || { echo "Not installed, for the reason above: mend it, and run make again." >&2; exit 1; }
	@touch $@

# Without an installed uv, install one into an ignored folder, with any Python 3.
.uv/bin/uv:
	@echo "Installing uv, and with it the rest, into this folder: a minute or so, once."
	@for python in python3 /usr/bin/python3 /usr/local/bin/python3 python; do \
		$$python -m venv .uv 2>/dev/null && break; \
	done; \
	test -x .uv/bin/pip || { \
		echo "Neither uv nor a Python 3 with venv is here: install uv, or Debian's python3-venv." >&2; exit 1; \
	}
	@.uv/bin/pip install -qq --retries 1 uv || { \
		echo "uv can't be fetched: see that this machine reaches the internet, or install uv." >&2; exit 1; \
	}
