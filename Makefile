# Two commands do everything: `make demo` and `make test`. Each makes its own set-up first.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
PYTHON := $(VENV)/bin/python
# The first interpreter that runs (a version manager's stub may not) and is of a supported version.
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))
HOST_PYTHON = $(shell for p in python3.12 python3.11 python3; do $$p -c '$(SUPPORTED)' 2>/dev/null && echo $$p && break; done)

.PHONY: help demo test lint bench soak docs lock clean system-packages-demo system-packages-test

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

demo: $(VENV)/.demo system-packages-demo ## set up, make a sample MR study, run brain extraction on it, show the result
	$(VENV)/bin/clara-flow demo --output demo-output

test: lint system-packages-test ## set up, lint, run all tests (Docker is started when it can be)
	$(PYTHON) -m pytest

lint: $(VENV)/.dev ## ruff, mypy, import-linter
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

bench: $(VENV)/.dev system-packages-test ## measure, write benchmarks/results/*.json
	$(PYTHON) -m benchmarks

soak: $(VENV)/.dev system-packages-test ## long fault and flood runs
	$(PYTHON) -m pytest -m soak --timeout 3600

docs: $(VENV)/.dev ## regenerate the generated reference pages
	$(PYTHON) -m clara_flow.flows.definition.schema > docs/reference/pipeline-definition.schema.json
	$(PYTHON) -m clara_flow.infra.images.reference > docs/reference/operators.md
	$(PYTHON) -m clara_flow.settings > docs/reference/clara-flow.toml
	$(PYTHON) -m clara_flow.services.dicom.conformance > docs/reference/dicom-conformance.md

lock: $(VENV)/.dev ## resolve all dependencies again (versions and hashes, no index addresses)
	$(PYTHON) -m pip install --quiet uv
	for extras in server operators "server operators demo" "server operators demo dev"; do \
	  $(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	    --no-emit-find-links --no-annotate --no-header $(LOCK_FLAGS) \
	    $$(printf -- '--extra %s ' $$extras) pyproject.toml -o locks/$${extras##* }.txt; \
	done

clean: ## remove what make made here
	rm -rf $(VENV) build dist demo-output .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@test -n "$(HOST_PYTHON)" \
	  || { echo "clara-flow needs Python 3.11 or 3.12 (python3 is $$(python3 --version 2>&1)); install one of them"; exit 1; }
	$(HOST_PYTHON) -m venv $(VENV)

# --no-deps: the lock is complete, and pip may look at newer releases than the locked ones where extras are asked for.
$(VENV)/.demo: locks/demo.txt pyproject.toml | $(VENV)/bin/python
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r locks/demo.txt
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

$(VENV)/.dev: locks/dev.txt pyproject.toml | $(VENV)/bin/python
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r locks/dev.txt
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@ $(VENV)/.demo

# Debian packages are a convenience: without them the demo takes another head and a PACS of ours, and tests that need
# them say so. No daemon of theirs is started.
define apt_install
	@missing=$$(for p in $(1); do dpkg-query -Wf '$${Status}' $$p 2>/dev/null | grep -q ' installed' || echo $$p; done); \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if ! command -v apt-get >/dev/null; then echo "no apt-get: going on without" $$missing; exit 0; fi; \
	if [ "$$(id -u)" != 0 ]; then echo "not root: going on without" $$missing "(sudo apt-get install" $$missing")"; exit 0; fi; \
	(quiet=/usr/sbin/policy-rc.d; \
	 [ -e $$quiet ] || { printf '#!/bin/sh\nexit 101\n' >$$quiet; chmod +x $$quiet; trap "rm -f $$quiet" EXIT; }; \
	 apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing) \
	  >/tmp/clara-flow-apt.log 2>&1 || echo "apt-get could not install" $$missing "(see /tmp/clara-flow-apt.log): going on without"
endef

system-packages-demo:
	$(call apt_install,mricron-data dcmtk orthanc)

system-packages-test:
	$(call apt_install,mricron-data dcmtk orthanc orthanc-dicomweb docker.io debootstrap dicom3tools graphviz gcc libc6-dev)
