# make help says what there is.
.DEFAULT_GOAL := help
.PHONY: help setup train test lint docs clean

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

TASK ?=
REG ?= both
DATA ?= builtin
SEED ?= 0
DEVICES ?= 1
ARGS ?=

help: ## Show this help
	@echo "usage: make TARGET [VARIABLE=VALUE ...]"
	@echo
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  \1\t\2/' | expand -t 10
	@echo
	@echo "variables of make train:"
	@echo "  TASK      vision, speech or nlp"
	@echo "  REG       preset of configs/reg: $(basename $(notdir $(wildcard configs/reg/*.yaml))) [both]"
	@echo "  DATA      builtin, a name in configs/data, a path or a hub id [builtin]"
	@echo "  SEED      of weights, splits, order and masks [0]"
	@echo "  DEVICES   number of GPUs, or of processes on a machine without [1]"
	@echo "  ARGS      any further key, such as ARGS=\"--model.reg.dropout=0.2\""
	@echo
	@echo "example: make train TASK=vision REG=both DATA=cifar10 SEED=1"

setup: $(VENV)/.done ## Make .venv with all that is needed, at the tested versions

# Made again when the requirements change; pip leaves alone what is right already.
$(VENV)/.done: pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

train: ## Train, validate and test one model: make train TASK=vision
	@test -n "$(TASK)" || { echo "error: TASK is missing: make train TASK=vision, speech or nlp" >&2; exit 2; }
	@test -x $(RUN) || { echo "error: there is no $(VENV) yet: run make setup first" >&2; exit 2; }
	@$(RUN) -m tasks.train --task "$(TASK)" --reg "$(REG)" --data "$(DATA)" --seed "$(SEED)" --devices "$(DEVICES)" $(ARGS)

test: ## Run the tests
	$(RUN) -m pytest -q

lint: ## Check style and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

docs: ## Draw the pictures of docs/ and measure the table of layers
	$(RUN) docs/figures/masks.py
	$(RUN) docs/figures/normalization.py
	$(RUN) docs/figures/variance_shift.py
	$(RUN) docs/layers.py

clean: ## Delete .venv and caches; runs stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
