# Everything a checkout needs: python3 (3.11 or newer) and make. The first target that wants it
# makes .venv and installs into it; later calls find the stamp and start at once.
#
# PyTorch: on Linux, pip's default build of torch brings several GB of CUDA libraries that kdexport
# does not use. Where pip is told of PyTorch's CPU builds (PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS in
# the environment, or pip's own configuration) it takes the CPU build of the pinned version.

PYTHON ?= python3
RECIPE ?= recipes/quickstart.yaml
NAME   := $(basename $(notdir $(RECIPE)))
VENV   := .venv
STAMP  := $(VENV)/.installed
BIN    := $(VENV)/bin
PEERS  := optimum genai llama trl
ELSEWHERE := .peers/optimum/.installed .elsewhere/lm-eval/.installed \
  tests/elsewhere/node/node_modules/.installed
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder
PIP    := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test test-browser test-elsewhere test-optimum fast-test check lint format types imports audit bench peers install clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) \
	  | awk -F ':.*## ' '{ printf "  make %-14s %s\n", $$1, $$2 }'

demo: $(STAMP) ## Teacher to measured int8 student, by the quickstart recipe; says where the results are
	@$(BIN)/kdexport run $(RECIPE)
	@printf '\n%-16s%s\n' 'numbers' 'runs/$(NAME)/bench.json' 'report' 'runs/$(NAME)/report.html' \
	  'exported, fp32' 'exported/$(NAME)/' 'exported, int8' 'exported/$(NAME)-int8/'

test: $(STAMP) ## Run every test, those with a real model too
	@$(PYTEST)

fast-test: $(STAMP) ## Run the tests that need no real model
	@$(PYTEST) -m 'not real'

test-browser: $(STAMP) ## The server's page and the report in Chromium (got by apt-get where root may)
	@$(if $(CHROMIUM),true,$(GET_CHROMIUM))
	@$(BIN)/python -m pytest tests/browser

CHROMIUM = $(firstword $(foreach name,chromium chromium-browser google-chrome,$(shell command -v $(name))))
GET_CHROMIUM = test "$$(id -u)" = 0 && command -v apt-get > /dev/null \
  || { echo 'Chromium is missing: install it, as by sudo apt-get install chromium' >&2; exit 1; }; \
  echo 'Installing chromium, this once' && apt-get update -qq \
  && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y chromium > /dev/null

check: lint types imports audit ## Run every check that is not a test

lint: $(STAMP) ## Style, mistakes and formatting (ruff)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(STAMP) ## Put the code into the one format, and mend what ruff can mend
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format .

types: $(STAMP) ## Types (mypy --strict)
	@$(BIN)/mypy --strict

imports: $(STAMP) ## Which part may import which (import-linter)
	@$(BIN)/lint-imports

audit: $(STAMP) ## Known vulnerabilities in the pinned dependencies (pip-audit)
	@$(BIN)/python .ci/audit.py

test-elsewhere: $(STAMP) $(ELSEWHERE) ## Open bundles with the other tools that can (installs them, once)
	@$(BIN)/python -m pytest tests/elsewhere

test-optimum: $(STAMP) .peers/optimum/.tested ## Export with optimum-onnx where mobius-onnx is not (installs it, once)
	@.peers/optimum/bin/python -m pytest tests/optimum

.peers/optimum/.tested: tests/optimum/requirements.txt .peers/optimum/.installed
	@.peers/optimum/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

.elsewhere/lm-eval/.installed: tests/elsewhere/lm-eval.txt
	@echo 'Installing into .elsewhere/lm-eval, this once: the versions of $<'
	@test -x .elsewhere/lm-eval/bin/python || $(PYTHON) -m venv .elsewhere/lm-eval
	@.elsewhere/lm-eval/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

tests/elsewhere/node/node_modules/.installed: tests/elsewhere/node/package-lock.json
	@echo 'Installing into tests/elsewhere/node/node_modules, this once: the versions of $<'
	@cd tests/elsewhere/node && npm ci --ignore-scripts --no-audit --no-fund --silent
	@touch $@

bench: $(STAMP) ## Measure the demo again, and write docs/benchmarks.md from bench/results
	@rm -f runs/$(NAME)/bench.json
	@$(BIN)/kdexport run $(RECIPE) --json > bench/results/.$(NAME).json
	@mv bench/results/.$(NAME).json bench/results/$(NAME).json
	@$(BIN)/python bench/document.py

peers: ## Install the engines of bench/peers.py, each apart (.peers: 3 GB, 10 minutes)
	@$(MAKE) --no-print-directory --keep-going $(PEERS:%=.peers/%/.installed)

.peers/%/.installed: bench/peers/%.txt
	@echo 'Installing into .peers/$*, this once: the versions of $<'
	@test -x .peers/$*/bin/python || $(PYTHON) -m venv .peers/$*
	@.peers/$*/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

# llama.cpp is compiled for this very CPU: no wheel, and none from pip's cache, which another machine
# may have filled. Without AMX: there the pinned version ends with an illegal instruction, since the
# compiler drops its tile configuration (llama.cpp's pull request 26954).
NO_AMX := $(if $(filter x86_64,$(shell uname -m)),-mno-amx-tile -mno-amx-int8 -mno-amx-bf16)
.peers/llama/.installed: export CMAKE_ARGS := -DGGML_NATIVE=ON -DMTMD_BUILD=OFF -DLLAVA_BUILD=OFF \
  -DCMAKE_C_FLAGS="$(NO_AMX)" -DCMAKE_CXX_FLAGS="$(NO_AMX)"
.peers/llama/.installed: export CMAKE_BUILD_PARALLEL_LEVEL := $(shell getconf _NPROCESSORS_ONLN)
.peers/llama/.installed: export PIP_NO_CACHE_DIR := 1

install: $(STAMP) ## Make .venv and install into it (every other target does this by itself)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kdexport needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	@echo 'Installing into $(VENV), this once. PyTorch is the big one: the top of the Makefile tells how to get its CPU build.'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --quiet --upgrade --constraint constraints.txt pip
	@$(PIP) install --quiet --constraint constraints.txt --build-constraint constraints.txt --editable '.[all,dev]'
	@touch $@

clean: ## Remove .venv, caches and build outputs (runs/ and exported/ stay)
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find kdexport tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
