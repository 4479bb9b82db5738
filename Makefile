# `make` lists the targets. Every target brings the machine to where it needs it first (scripts/setup.sh),
# which costs under a second when nothing changed.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory

ifdef HAAGENT_VENV
VENV := $(HAAGENT_VENV)
else ifeq ($(shell id -u),0)
VENV := /opt/haagent/venv
else
VENV := $(HOME)/.local/share/haagent/venv
endif
export HAAGENT_VENV := $(VENV)
PYTHON := $(VENV)/bin/python

# Arguments for the program behind a target: make test ARGS='-k lease', make demo ARGS=--help
ARGS ?=
JOBS ?= 2
# Simulated clusters wait for nothing: one process per core, unless JOBS says otherwise.
SIMULATE_JOBS := $(if $(filter file,$(origin JOBS)),,--jobs $(JOBS))
VERSIONS ?=
MINUTES ?= 10
SEED ?=
PLAN ?=
PYTEST := $(PYTHON) -m pytest -n $(JOBS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup postgres-versions demo lint format unit test test-all simulate replay mutants chaos bench clean

help: ## this list
	@printf '\033[1mhaagent\033[0m: a PostgreSQL high-availability agent\n\n'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  \033[36mmake %-17s\033[0m %s\n", $$1, $$2 }' Makefile
	@printf '\nEverything is set up on the first use (Debian packages: root or sudo). Environment: %s\n' '$(VENV)'

setup: ## install what lacks: Debian packages, virtual environment, haagent in it
	@scripts/setup.sh

postgres-versions: setup ## the PostgreSQL versions of the test matrix, beside the system's (VERSIONS='14 18'; default all)
	@scripts/postgres-versions.sh $(VERSIONS)

demo: setup ## three nodes on this machine, and a failover to watch (ARGS=… for options)
	@$(VENV)/bin/haagent demo $(ARGS)

lint: setup ## style, types, and who may import whom
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m mypy
	@$(VENV)/bin/lint-imports --no-cache

format: setup ## put the code into shape
	@$(PYTHON) -m ruff check --fix .
	@$(PYTHON) -m ruff format .

unit: setup ## the tests that need no servers, in seconds
	@$(PYTEST) tests/unit tests/property $(ARGS)

test: lint ## lint, then every test except the slow ones
	@scripts/postgres-versions.sh 14 18
	@$(PYTEST) -m 'not slow' $(ARGS)

test-all: lint postgres-versions ## everything, slow tests too; writes docs/test-report.md
	@scripts/test-report.sh $(ARGS)

simulate: setup ## simulated clusters for MINUTES on all cores: every rule checked after every event
	@$(PYTHON) -m tests.simulation.run simulate --minutes $(MINUTES) $(SIMULATE_JOBS) $(ARGS)

replay: setup ## the readable trace of one simulated schedule (SEED=… or PLAN=…), shrunk when it breaks a rule
	@$(PYTHON) -m tests.simulation.run replay $(if $(SEED),--seed $(SEED)) $(if $(PLAN),--plan $(PLAN)) $(ARGS)

mutants: setup ## planted bugs, and which check catches each (ARGS='NAME… --seconds 60' for some, or longer)
	@$(PYTHON) -m tests.simulation.hunt $(ARGS)

chaos: setup ## random faults on real servers for MINUTES (SEED=… repeats a plan); writes docs/chaos-report.md
	@$(PYTHON) -m tests.chaos.torture --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)

bench: setup ## haagent beside Patroni, about 15 minutes; writes docs/benchmarks.md (ARGS=… for options)
	@$(PYTHON) -m benchmarks.failover $(ARGS)

clean: ## remove caches from the checkout (the environment stays)
	@rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
