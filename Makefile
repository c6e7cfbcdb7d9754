# Everything a developer, an operator trying it out, and CI do with this tree. `make` alone prints this list.
# PYTHON=…  the Python to make the environment with      T=…  what pytest gets, e.g. make test T="tests/unit -k states"
# N=…       how many tests run side by side, file by file (2; 0: one after the other)
# DEMO=…    options of the demo, e.g. make demo DEMO="--files 10"

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
BIN := .venv/bin
PYTHONS := python3.14 python3.13 python3.12 python3.11 python3.10 python3
export PYTHON
T ?=
N ?= 2
DEMO ?=
HOURS ?= 1
SCALE ?= 1
ONLY ?=
PACKAGES := protocol copytools pilot server client daq
SCRIPTS := $(wildcard wrappers/*.sh .ci/*.sh .ci/run tests/*.sh)

.PHONY: help dev demo test test-pg test39 check lint fmt type cover bench soak docs components clean release

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

dev: ## a working environment in .venv: everything installed, this tree editable
	@.ci/venv.sh .venv all,test 3.10 $(PYTHONS)

demo: ## the main job on this machine, start to end, without tests' tools (DEMO="…" options)
	@.ci/venv.sh .venv all 3.10 $(PYTHONS)
	@exec $(BIN)/pilotage demo $(DEMO)

test: components dev lint type test39 ## everything: what CI runs (T="…" chooses tests)
	$(BIN)/pytest -n $(N) --dist loadfile $(T)

test-pg: dev ## the tests that use a real Postgres
	$(BIN)/pytest --component postgres --component postgres-system --component postgres-wheel $(T)

test39: ## the unit tests of protocol, copytools and pilot on Python 3.9, where there is one
	@python39=$$(.ci/python39.sh) || { echo "test39: no Python 3.9 here, not run (vermin still looks, in make test)"; exit 0; }; \
	PYTHON=$$python39 .ci/venv.sh .venv39 fast,test-node 3.9 && \
	.venv39/bin/python -m pytest -q --durations=0 --durations-min=5 \
	    $(wildcard tests/unit/protocol tests/unit/copytools tests/unit/pilot) tests/unit/tests

check: dev lint type ## what a commit should pass, in seconds: lint, types, layers, Python 3.9
	$(BIN)/pytest -q --durations=0 --durations-min=5 tests/test_layers.py tests/test_python39.py

lint: dev ## ruff, codespell, shellcheck
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	@if command -v shellcheck >/dev/null; then echo shellcheck $(SCRIPTS); shellcheck $(SCRIPTS); \
	else echo "shellcheck: not on PATH, not run (make components installs it)"; fi

fmt: dev ## format, and mend what can be mended
	$(BIN)/ruff check --fix-only -q .
	$(BIN)/ruff format .

type: dev ## mypy: strict in protocol and copytools
	$(BIN)/mypy

cover: dev ## the tests with line and branch coverage; a report in htmlcov/
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(T)
	$(BIN)/coverage combine -q
	$(BIN)/coverage html -q
	$(BIN)/coverage report

bench: dev ## how fast the dispatcher is here, on SQLite and Postgres, within a minute (docs/performance.md)
	$(BIN)/pilotage bench dispatch --quick

soak: dev ## the fault tests at full length and HOURS=1 of load, on both databases (ONLY=… parts, SCALE=0.01 small)
	$(BIN)/python -m tests.soak --hours $(HOURS) --scale $(SCALE) --only "$(ONLY)"

docs: dev ## write the tables of README.md and docs/ anew from the tables in the code
	$(BIN)/python docs/render.py

components: ## as root on Debian: install the system packages that tests need
	@tests/components.sh

clean: ## remove all that make made
	rm -rf .venv .venv39 build dist *.egg-info htmlcov .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find $(PACKAGES) tests docs etc -name __pycache__ -type d -prune -exec rm -rf {} +

release: check ## a source archive and a wheel in dist/
	rm -rf build dist
	$(BIN)/python -c "import setuptools.build_meta as b; print(b.build_sdist('dist')); print(b.build_wheel('dist'))"
	rm -rf build
	@ls -l dist
