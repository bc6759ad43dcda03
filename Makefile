# Set-up is part of every target: a fresh clone needs only Python 3.11+, make and git.
.DEFAULT_GOAL := help
.PHONY: help demo test bench lint format clean environment-plan environment-dev

PYTHON := .venv/bin/python
ECHELON := .venv/bin/echelon
DEMO := out/demo
HOSPITAL := $(DEMO)/hospital
WORKERS ?= 2

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */\1\t/' | expand -t 10

demo: environment-plan  ## plan the bundled hospital fleet; results in out/demo (first run about a minute)
	@rm -rf $(DEMO) && mkdir -p $(DEMO)
	$(ECHELON) init --example hospital $(HOSPITAL)
	$(ECHELON) solve $(HOSPITAL)/fleet.yaml $(HOSPITAL)/model.yaml $(HOSPITAL)/policy.yaml -o $(DEMO)/plan.json
	$(ECHELON) check $(DEMO)/plan.json
	$(ECHELON) show $(DEMO)/plan.json --html $(DEMO)/plan.html --svg $(DEMO)/plan.svg
	@echo "the picture: $(DEMO)/plan.html"

test: lint  ## environment, lint, types, layers and the whole test suite
	$(PYTHON) -m pytest -n $(WORKERS)

bench: environment-dev  ## print the benchmark tables (takes long)
	$(PYTHON) tests/bench/run_all.py

lint: environment-dev  ## ruff, mypy --strict and the import layers
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	.venv/bin/lint-imports --no-logo

format: environment-dev  ## rewrite the source files in the common layout
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

clean:  ## remove the environment and everything generated
	rm -rf .venv out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

environment-plan:
	@sh .ci/environment.sh plan

environment-dev:
	@sh .ci/environment.sh plan,dev
