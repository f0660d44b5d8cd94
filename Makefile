# `make help` lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BIOME_VERSION := 2.6.8
BIOME := $(VENV)/biome-$(BIOME_VERSION)/node_modules/.bin/biome
# CI needs it; elsewhere it may be missing, and then JavaScript is not checked.
NPM := $(if $(CI),npm,$(shell command -v npm 2>/dev/null))
UV_INSTALL = $(BIN)/uv pip install --quiet --python $(BIN)/python
USER_NAME ?= me
BIND = $(or $(TASKSERVICE_BIND),127.0.0.1:8000)
# Kept bytecode saves seconds in each process of the tests.
unexport PYTHONDONTWRITEBYTECODE
# More than CPUs, since many tests wait for another process.
PROCESSES ?= $$(( $$(getconf _NPROCESSORS_ONLN) * 2 ))
# More arguments for `make test-all`, such as `@FILE` with a line for each.
PYTEST ?=

.DEFAULT_GOAL := help
.PHONY: help install run demo test test-lists test-dashboard test-browser test-callbacks test-server \
	test-agent test-operations test-mcp test-deploy test-nodes test-crash test-api test-big test-all lint \
	lint-python lint-js fix dev \
	bench bench-more bench-scaling docs docs-links reference screenshots dist image clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read name text; do \
		printf '  make %-16s %s\n' "$$name" "$$text"; done

install: $(VENV)/installed ## Create .venv with taskservice and its dependencies

# An editable installation contains the help pages too, so that a new document needs a new one.
$(VENV)/installed: requirements.txt setup.cfg pyproject.toml CHANGELOG.md SECURITY.md $(shell find docs examples -type f)
	@echo "Installing taskservice and its packages into $(VENV): about half a minute..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --requirement requirements.txt --editable '.[server]'
	@touch $@

# The port is checked before anything is created or printed.
run: install ## Install, create a first user, and serve on 127.0.0.1:8000 or TASKSERVICE_BIND
	@TASKSERVICE_BIND=$(BIND) $(BIN)/python -c 'from taskservice.cli import serve; \
		serve.require_free_address(serve.load_config().BIND, "TASKSERVICE_BIND")'
	@export TASKSERVICE_BIND=$(BIND) \
		TASKSERVICE_CALLBACK_ALLOWED=$${TASKSERVICE_CALLBACK_ALLOWED:-external,loopback}; \
	users=$$($(BIN)/taskservice user list --json 2>/dev/null); \
	test -n "$$users" || key=$$($(BIN)/taskservice user add $(USER_NAME)) || exit; \
	link=$$($(BIN)/taskservice sign-in-link $(USER_NAME) 2>/dev/null) || link=http://$(BIND); \
	echo "Open $$link"; \
	test -z "$$key" && echo "For another API key: $(BIN)/taskservice key add $(USER_NAME) --name laptop" || \
		echo "API key for programs, shown only once: $$key"; \
	exec $(BIN)/taskservice serve

demo: install ## Install, and serve made-up tasks and agents, to look at
	@$(BIN)/taskservice demo --port $(lastword $(subst :, ,$(BIND)))

# It takes a tenth of the time that pip takes.
$(VENV)/uv: $(VENV)/installed tests/requirements.txt
	$(BIN)/python -m pip install --quiet --constraint tests/requirements.txt uv
	@touch $@

$(VENV)/installed-test: $(VENV)/uv
	$(UV_INSTALL) --constraint tests/requirements.txt --editable '.[test,lint]'
	@touch $@

test: $(VENV)/installed-test ## Install the tests' dependencies, and test the core of the service
	$(BIN)/python -m pytest -n $(PROCESSES) --dist worksteal

test-lists: $(VENV)/installed-test ## Test lists: filters, cursors, labels, searches, numbers, attention
	$(BIN)/python -m pytest -n $(PROCESSES) --dist worksteal tests/lists

test-dashboard: $(VENV)/installed-test ## Test the pages of the dashboard over HTTP
	$(BIN)/python -m pytest -n $(PROCESSES) --dist worksteal tests/dashboard

test-browser: $(VENV)/installed-test ## Test the dashboard, and the search of the help, in a real browser
	$(BIN)/python -m pytest -n auto --dist worksteal tests/browser

test-callbacks: $(VENV)/installed-test ## Test webhooks, also while the service is killed at critical points
	$(BIN)/python -m pytest -n $(PROCESSES) --dist worksteal tests/callbacks

test-server: $(VENV)/installed-test ## Test the processes: gunicorn and its worker, `taskservice background`
	$(BIN)/python -m pytest -n $(PROCESSES) --dist worksteal tests/server

test-agent: $(VENV)/installed-test ## Test the client and the runner, also while programs and the service are killed
	AGENT_LINES=$${AGENT_LINES:-100000} AGENT_KILLS=$${AGENT_KILLS:-10} \
		$(BIN)/python -m pytest -n $(PROCESSES) --dist worksteal tests/agent_side

test-operations: $(VENV)/installed-test ## Test health, metrics, maintenance, and the commands on the server: upgrade, copy, export
	$(BIN)/python -m pytest -n $(PROCESSES) --dist worksteal tests/operations

test-mcp: $(VENV)/installed-test ## Test MCP, also with clients from their packages and its conformance suite
	$(BIN)/python -m pytest -n $(PROCESSES) --dist worksteal tests/mcp tests/mcp_clients

test-deploy: $(VENV)/installed-test ## Test each file of deploy/ with its program
	$(BIN)/python -m pytest -n $(PROCESSES) --dist worksteal tests/deploy

test-nodes: $(VENV)/installed-test ## 60 s of load on two nodes behind nginx, with each fault; a standby promoted
	NODES_SECONDS=$${NODES_SECONDS:-60} $(BIN)/python -m pytest -n 4 --dist worksteal -rP tests/nodes

test-crash: $(VENV)/installed-test ## 30 s of load on each database, with kills; followers; an upgrade under load
	CRASH_SECONDS=$${CRASH_SECONDS:-30} $(BIN)/python -m pytest -s tests/crash

test-api: $(VENV)/installed-test ## Strict and generated requests, types, clients, suites of others, a model of the API
	FUZZ_SECONDS=$${FUZZ_SECONDS:-60} $(BIN)/python -m pytest -n auto tests/api
	$(BIN)/python -m pytest -n auto --dist loadfile tests/other_suites

test-big: $(VENV)/installed-test ## A log of 100 MiB, a list of 100,000 tasks, much that is removed, `bench`
	$(BIN)/python -m pytest -n 2 --dist worksteal tests/big

test-all: $(VENV)/installed-test ## All but the core in one run, which takes less than one target after the other
	$(BIN)/python -m pytest -n $(PROCESSES) --dist worksteal --durations=12 $(PYTEST) $(sort $(dir $(wildcard tests/*/test_*.py)))

lint: lint-python lint-js ## Check style and types; of JavaScript too, where npm is installed

lint-python: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(BIOME):
	npm install --silent --no-fund --no-audit --prefix $(VENV)/biome-$(BIOME_VERSION) @biomejs/biome@$(BIOME_VERSION)

lint-js: $(if $(NPM),$(BIOME))
	$(if $(NPM),$(BIOME) check --error-on-warnings,@echo "npm is not installed: JavaScript is not checked.")

fix: $(VENV)/installed-test $(if $(NPM),$(BIOME)) ## Format the code, and mend what the linters can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(if $(NPM),$(BIOME) check --write)

dev: install ## Serve on 127.0.0.1:8000 with a debugger, and restart on each change of the code
	$(BIN)/flask --app taskservice.app run --debug --port 8000

bench: $(VENV)/installed-test ## Compare with simpler programs that could be written instead, in five minutes
	$(BIN)/python -m benchmarks $(BENCH)

bench-more: $(VENV)/installed-test ## Measure webhooks, idle clients, long logs in a browser, `run`, searches
	$(BIN)/python -m benchmarks.callbacks
	$(BIN)/python -m benchmarks.waits
	$(BIN)/python -m benchmarks.long_log
	$(BIN)/python -m benchmarks.run_overhead
	$(BIN)/python -m benchmarks.search

bench-scaling: $(VENV)/installed-test ## Measure both databases with up to 1,000,000 tasks, in about 12 minutes
	$(BIN)/python -m benchmarks.scaling $(BENCH)

docs: install ## Build the help pages, which the service shows at /help/
	@echo "Open taskservice/help/index.html"

docs-links: ## Print the links of the documents to pages of other sites that do not exist
	@grep -rhoE '\]\(https://[^)#]+' *.md docs examples | cut -c 3- | grep -v 'example\.org' | sort -u | \
		xargs -P 8 -I URL sh -c 'curl -sfL --max-time 30 -o /dev/null URL || echo URL'

reference: $(VENV)/installed-test ## Write the commands and settings into docs/reference
	$(BIN)/python -m tests.reference_pages

screenshots: $(VENV)/installed-test ## Take the pictures of the dashboard in docs/
	$(BIN)/python -m tests.screenshots docs/dashboard

$(VENV)/installed-release: $(VENV)/uv
	$(UV_INSTALL) --editable '.[release]'
	@touch $@

dist: $(VENV)/installed-release ## Build a release in dist/, and try it on each installed Python
	.ci/dist

image: ## Build the container image, with podman or docker
	.ci/image

clean: ## Remove .venv and the caches of the tools; the data stays
	rm -rf $(VENV) build taskservice/help *.egg-info .pytest_cache .mypy_cache .ruff_cache
