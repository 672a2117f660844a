# Every target makes or refreshes .venv by itself.

PYTHON ?= python3
BIN := .venv/bin
SAMPLE := .labeling/sample
DEMO_MODELS := --model tiny-rex-omni --model tiny-florence-2 --model rapidocr
export LABELING_HOME ?= $(SAMPLE)
export VIRTUAL_ENV := $(CURDIR)/.venv

.DEFAULT_GOAL := help
.PHONY: help demo dev serve test check soak bench clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,ocr,service]'
	touch $@

demo: .venv/.installed ## write the sample dataset, then label, draw, export and evaluate it
	$(BIN)/python -m labeling_pipeline sample $(SAMPLE)/dataset
	LABELING_HOME=$(SAMPLE) $(BIN)/python run.py $(SAMPLE)/dataset/images --plan plans/sample.yaml

dev: .venv/.installed ## the Dagster UI on http://localhost:3000, for the sample or LABELING_HOME
	mkdir -p "$(LABELING_HOME)/dagster"
	cp dagster.yaml "$(LABELING_HOME)/dagster/"
	DAGSTER_HOME="$(abspath $(LABELING_HOME))/dagster" $(BIN)/dg dev

serve: .venv/.installed ## the HTTP service and a page to try it on http://localhost:6996
	$(BIN)/python -m labeling_pipeline serve $(if $(LABELING_MODEL),,$(DEMO_MODELS))

test: .venv/.installed ## the tests, under ten minutes, no network
	$(BIN)/python -m pytest -m "not soak" -n 2 --dist loadfile --no-loadscope-reorder

check: .venv/.installed ## format, lint, types, imports, definitions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports
	$(BIN)/dg check defs

soak: .venv/.installed ## what takes longer: kills, a live Dagster, a browser
	$(BIN)/python -m pytest -m soak

bench: .venv/.installed ## every performance claim, measured now
	$(BIN)/python -m benchmarks

clean: ## remove .venv and the sample; homes of your own folders stay
	rm -rf .venv $(SAMPLE)
