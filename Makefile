# Two commands matter: `make demo` runs the main job, `make test` passes the tests. Each sets itself up on a fresh machine.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.windlass-installed
PYTEST ?= $(BIN)/pytest

.DEFAULT_GOAL := help
.PHONY: help setup demo test control-plane e2e conformance verify lock lint format types layers generate manifests images model recipes gates cuda bench bench-quantized bench-autoscaling bench-control-plane bench-gateway engine-check gpu-check clean

help:            ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | sort | expand -t 16

setup: $(STAMP)  ## create .venv with everything a developer needs
$(STAMP): pyproject.toml requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.9,<1"
	$(BIN)/uv pip sync --quiet --python $(BIN)/python requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

lock:            ## resolve requirements.lock anew from pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --no-header --no-emit-index-url --all-extras --group dev --upgrade pyproject.toml requirements-build.in -o requirements.lock

demo: $(STAMP)   ## serve the quickstart, ask it one question, print the figures
	$(BIN)/python examples/demo.py

test: $(STAMP)   ## run every test that needs no GPU and no cluster
	$(PYTEST) -q

control-plane:   ## build the Kubernetes binaries for e2e, cached outside the tree
	tests/e2e/tools/build.sh

e2e: $(STAMP) control-plane  ## run the end-to-end tests on real control planes, all Kubernetes minors at once
	PYTEST=$(PYTEST) tests/e2e/run.sh

conformance: $(STAMP)  ## write docs/reference/conformance.md from the results of `make e2e`
	PYTHONPATH=tests $(BIN)/python -m support.conformance build/conformance.json docs/reference/conformance.md

verify: $(STAMP) lint types layers  ## everything CI checks besides the tests
	$(BIN)/windlass generate --check

lint: $(STAMP)   ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
types: $(STAMP)  ## mypy, strict
	$(BIN)/mypy
layers: $(STAMP) ## import-linter
	$(BIN)/lint-imports
format: $(STAMP) ## apply safe fixes, then format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
generate: $(STAMP) ## write crds/ and docs/reference/ from the API types
	$(BIN)/windlass generate
manifests: $(STAMP) ## write helm/manifests, docs/reference/rbac.md and the tables of values from the charts; needs Helm
	$(BIN)/python helm/tools/generate.py
# ENGINE builds the images: the first that answers. IMAGE_FLAGS are passed on, such as --build-arg PYTHON_IMAGE=... or --push.
ENGINE  ?= $(shell for engine in docker podman buildah; do $$engine info >/dev/null 2>&1 && echo $$engine && break; done)
VERSION  = $(shell sed -n 's/^version = "\(.*\)"$$/\1/p' pyproject.toml)
IMAGES  ?= ghcr.io/windlass
LABELS   = --build-arg VERSION=$(VERSION) --build-arg REVISION=$(shell git rev-parse HEAD 2>/dev/null || echo unknown)
images:          ## build the operator's and the runtime's image with docker, podman or buildah
	@test -n "$(ENGINE)" || { echo "images: no docker, podman or buildah answers here; start one, or set ENGINE" >&2; exit 1; }
	$(ENGINE) build --file operator/Dockerfile $(LABELS) --tag $(IMAGES)/windlass-operator:$(VERSION) $(IMAGE_FLAGS) .
	$(ENGINE) build --file runtime/Dockerfile $(LABELS) --tag $(IMAGES)/windlass-runtime:$(VERSION) $(IMAGE_FLAGS) .

model: $(STAMP)  ## train the shipped model anew: about half an hour on 2 cores, needs Go for its corpus
	$(BIN)/python examples/models/train/corpus.py build/corpus
	$(BIN)/python examples/models/train/train.py build/corpus build/windlass-tiny
	$(BIN)/python examples/models/train/publish.py build/corpus build/windlass-tiny examples/models/windlass-tiny

TINY := examples/models/windlass-tiny
recipes: $(STAMP) ## calibrate the shipped model's recipes on the project's own documentation, and draw them: some minutes
	mkdir -p build && cat README.md docs/*.md docs/howto/*.md > build/calibration.txt
	for precision in int8 int4; do $(BIN)/windlass-runtime calibrate $(TINY) --data build/calibration.txt --heldout $(TINY)/heldout.txt --precision $$precision --recipe $(TINY)/recipes/$$precision || exit 1; done
	$(BIN)/windlass-runtime report $(TINY)/recipes/int8 $(TINY)/recipes/int4 --target docs/benchmarks/recipes

gates: $(STAMP)  ## train the shipped model's gate of sparse activation on the same documentation: some minutes
	mkdir -p build && cat README.md docs/*.md docs/howto/*.md > build/calibration.txt
	$(BIN)/windlass-runtime train-gate $(TINY) --data build/calibration.txt --heldout $(TINY)/heldout.txt --gate $(TINY)/gates/stored

bench: $(STAMP)  ## compare decoding on this CPU with transformers; needs a quiet machine
	$(BIN)/python benchmarks/cpu_decode.py --output build/cpu_decode.json

# PEERS is an environment with the other engines, as benchmarks/cpu_quantized.py says.
bench-quantized: $(STAMP) ## compare 8- and 4-bit decoding on this CPU with other engines; needs a quiet machine
	$(BIN)/python benchmarks/cpu_quantized.py --output build/cpu_quantized.json $(if $(PEERS),--peers-python $(PEERS)/bin/python)

bench-gateway: $(STAMP)  ## hold thousands of streams open through the gateway to simulated replicas; needs a quiet machine
	$(BIN)/python benchmarks/gateway_streams.py --output build/gateway_streams.json

bench-autoscaling: $(STAMP)  ## compare our scaling with CPU scaling on one trace, in virtual time
	$(BIN)/python benchmarks/autoscaling_trace.py --output build/autoscaling_trace.json --plot build/autoscaling.svg

bench-control-plane: $(STAMP)  ## compare the operator with KubeRay and with none on a real control plane; needs Go and a quiet machine
	PYTHONPATH=tests $(BIN)/python benchmarks/control_plane.py --repeats 3 --idle 5000 --output build/control_plane.json

# The compiler has an environment of its own: its five parts must agree, and not with the CUDA libraries of torch.
NVCC := build/nvcc
$(NVCC)/.installed: requirements-nvcc.txt $(STAMP)
	test -x $(NVCC)/bin/python || $(PYTHON) -m venv --without-pip $(NVCC)
	$(BIN)/uv pip sync --quiet --python $(NVCC)/bin/python requirements-nvcc.txt
	@touch $@
cuda: $(NVCC)/.installed ## compile the device kernels for every architecture; writes docs/benchmarks/kernel-resources.md, CHECK=--check compares
	WINDLASS_NVCC=$$(echo $(NVCC)/lib/python*/site-packages/nvidia/cu13/bin/nvcc) $(BIN)/python benchmarks/kernel_resources.py $(CHECK)

engine-check: $(STAMP) ## build the shipped model's TensorRT plan with its INT8 recipe, without a GPU; prints manifest, size and time
	$(BIN)/windlass-runtime build-engine $(TINY) --backend tensorrt-rtx --target sm_80 --target sm_89 --target sm_120 --store build/engines --rebuild
	$(BIN)/windlass-runtime engine verify --store build/engines

gpu-check:       ## everything that needs a GPU, with the machine's own python3 and torch; writes docs/benchmarks/gpu.md
	PYTHONPATH=operator:runtime:kernels:tests python3 benchmarks/gpu_check.py --report docs/benchmarks/gpu.md

clean:           ## remove what was built, keep the environment
	rm -rf build dist
