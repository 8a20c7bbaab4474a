# qproxy: `make demo` shows it, `make test` proves it. `make help` lists the rest.

VENV ?= .venv
BIN := $(VENV)/bin
PURE := proxy/engine/*,proxy/route/*,proxy/policy/*,proxy/pipe.py,balancer/*
# One test process per core but never more than eight: e2e tests start processes of their own.
WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); [ $$n -gt 8 ] && n=8; echo $$n)
SHELL := /bin/sh
.DELETE_ON_ERROR:
.PHONY: help venv demo test lint types imports unit e2e coverage bench fuzz packages clean

help: ## This list
	@sed -n 's/^\([a-z0-9]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 12

venv: $(VENV)/.developer ## The virtual environment with everything that tests and benchmarks need

# The two stamps name what was installed last. The developer's installation serves the demo as well.
$(VENV)/.demo: pyproject.toml scripts/venv
	@if [ -e $(VENV)/.developer ]; then $(MAKE) --no-print-directory $(VENV)/.developer; else scripts/venv $(VENV) -e .; fi
	@touch $@

$(VENV)/.developer: pyproject.toml scripts/venv
	@scripts/venv $(VENV) -e '.[dev]'
	@touch $@

demo: $(VENV)/.demo ## Serve the example on port 8443 until Ctrl-C
	@exec $(BIN)/qproxy demo -c conf.d

test: venv packages lint types imports ## Everything that CI runs
	@rm -f .coverage .coverage.*
	$(BIN)/pytest -q -n $(WORKERS) --cov --cov-report= tests/unit tests/property tests/sim
	$(BIN)/pytest -q -n $(WORKERS) --dist loadfile tests/e2e
	@$(MAKE) --no-print-directory coverage

coverage: # Of the last run of unit tests, properties and simulations, which exercise the pure parts
	@$(BIN)/coverage report --skip-covered --skip-empty
	@echo "Pure parts (branch coverage must be above 90 %):"
	@$(BIN)/coverage report --include='$(PURE)' --skip-covered --skip-empty --fail-under=90

lint: venv ## ruff, with everything on
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: venv ## mypy, strict
	$(BIN)/mypy

imports: venv ## The layers, by import-linter
	$(BIN)/lint-imports

unit: venv ## Unit tests, properties and simulations
	$(BIN)/pytest -q -n $(WORKERS) tests/unit tests/property tests/sim

e2e: venv packages ## Tests with real clients on real sockets
	$(BIN)/pytest -q -n $(WORKERS) --dist loadfile tests/e2e

bench: venv packages ## Compare with nginx, hypercorn and the bare libraries: bench/results/
	$(BIN)/python -m bench.run

fuzz: venv ## The properties, with a hundred times as many examples
	FUZZ=100 $(BIN)/pytest -q -n $(WORKERS) --timeout=1800 tests/property

packages: # The Debian packages whose programs tests and benchmarks run
	@scripts/debian-packages

clean: ## Remove what was made here, the virtual environment and the demo's state included
	rm -rf $(VENV) .state build dist *.egg-info .coverage .coverage.* htmlcov .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
