# Two commands matter: `make demo` runs the main job, `make test` passes the tests. Each sets itself up on a fresh machine.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.windlass-installed
PYTEST ?= $(BIN)/pytest

.DEFAULT_GOAL := help
.PHONY: help setup demo test control-plane e2e verify lint format types layers generate model bench gpu-check clean

help:            ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | sort | expand -t 16

setup: $(STAMP)  ## create .venv with everything a developer needs
$(STAMP): pyproject.toml requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.9,<1"
	$(BIN)/uv pip sync --quiet --python $(BIN)/python requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

lock:            ## resolve requirements.lock anew from pyproject.toml
	$(BIN)/uv pip compile --quiet --no-header --no-emit-index-url --all-extras --group dev --upgrade pyproject.toml requirements-build.in -o requirements.lock
	$(BIN)/python -m windlass_operator --version >/dev/null

demo: $(STAMP)   ## serve the quickstart, ask it one question, print the figures
	$(BIN)/python examples/demo.py

test: $(STAMP)   ## run every test that needs no GPU and no cluster
	$(PYTEST) -q

control-plane: ## build the Kubernetes binaries for e2e, cached outside the tree
	tests/e2e/tools/build.sh

e2e: $(STAMP)    ## run the end-to-end tests on a real control plane
	$(PYTEST) -q tests/e2e

verify: $(STAMP) lint types layers  ## everything CI checks besides the tests
	$(BIN)/windlass generate --check

lint: $(STAMP)   ## ruff
	$(BIN)/ruff check .
types: $(STAMP)  ## mypy, strict
	$(BIN)/mypy
layers: $(STAMP) ## import-linter
	$(BIN)/lint-imports
format: $(STAMP) ## sort imports and apply safe fixes
	$(BIN)/ruff check --fix .
generate: $(STAMP) ## write crds/ and docs/reference/ from the API types
	$(BIN)/windlass generate
clean:           ## remove what was built, keep the environment
	rm -rf build dist
