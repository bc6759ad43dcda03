# Set-up is part of every target: a fresh clone needs only Python 3.11+, make and git.
.DEFAULT_GOAL := help
.PHONY: help demo test bench bench-contest bench-secagg lint format clean environment-demo environment-dev

PYTHON := .venv/bin/python
ECHELON := .venv/bin/echelon
DEMO := out/demo
HOSPITAL := $(DEMO)/hospital
DESK := $(DEMO)/desk
WORKERS ?= 2

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */\1\t/' | expand -t 10

demo: environment-demo  ## plan two bundled fleets and train one plan for a minute; results in out/demo
	@rm -rf $(DEMO) && mkdir -p $(DEMO)
	$(ECHELON) init --example hospital $(HOSPITAL)
	$(ECHELON) solve $(HOSPITAL)/fleet.yaml $(HOSPITAL)/model.yaml $(HOSPITAL)/policy.yaml -o $(HOSPITAL)/plan.json
	$(ECHELON) check $(HOSPITAL)/plan.json
	$(ECHELON) show $(HOSPITAL)/plan.json --html $(HOSPITAL)/plan.html --svg $(HOSPITAL)/plan.svg
	$(ECHELON) init --example desk $(DESK)
	$(ECHELON) profile $(DESK)/model.yaml --device-type core -o $(DESK)/profile.json
	$(ECHELON) solve $(DESK)/fleet.yaml $(DESK)/model.yaml $(DESK)/policy.yaml --executor deepspeed \
		--cost-model measured --profile $(DESK)/profile.json -o $(DESK)/plan.json
	$(ECHELON) check $(DESK)/plan.json
	$(ECHELON) launch $(DESK)/plan.json --job $(DESK)/job.yaml --local --output $(DESK)/run
	@echo "the hospital's picture: $(HOSPITAL)/plan.html"

test: lint  ## environment, lint, types, layers and the whole test suite
	$(PYTHON) -m pytest -n $(WORKERS)

bench: environment-dev  ## print the benchmark tables (takes long)
	$(PYTHON) tests/bench/run_all.py

bench-contest: environment-dev  ## compare sync policies in virtual time on a small language model (about an hour)
	$(PYTHON) tests/bench/bench_contest.py

bench-secagg: environment-dev  ## CPU seconds, memory and bytes of secure aggregation
	$(PYTHON) tests/bench/bench_secagg.py

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

environment-demo:
	@sh .ci/environment.sh plan,train

environment-dev:
	@sh .ci/environment.sh plan,train,dev
