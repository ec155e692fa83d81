# make help says what there is.
.DEFAULT_GOAL := help
.PHONY: help setup train study report sweep dashboard test sanitize lint docs bench clean

PYTHON ?= python3
VENV := .venv
COMMA := ,
RUN := $(VENV)/bin/python

TASK ?=
REG ?= both
DATA ?= builtin
SEED ?= 0
DEVICES ?=
NODES ?=
STRATEGY ?= auto
RESUME ?=
ARGS ?=

VARIANTS ?= none dropout batchnorm both
SEEDS ?= 5
JOBS ?= auto
THREADS ?= 1
LAUNCHER ?= local
NAME ?=
STUDY ?=
ENTITY ?=
SPACE ?=
TRIALS ?= 30
STORAGE ?=
PORT ?= 8000
BENCH ?=

# What any target needs that runs the project.
READY = test -x $(RUN) || { echo "error: there is no $(VENV) yet: run make setup first" >&2; exit 2; }
# given: what is missing, and an example
given = test -n "$($(1))" || { echo "error: $(1) is missing: make $@ $(2)" >&2; exit 2; }

help: ## Show this help
	@echo "usage: make TARGET [VARIABLE=VALUE ...]"
	@echo
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  \1\t\2/' | expand -t 12
	@echo
	@echo "variables of make train:"
	@echo "  TASK      vision, speech or nlp"
	@echo "  REG       preset of configs/reg: $(basename $(notdir $(wildcard configs/reg/*.yaml))) [both]"
	@echo "  DATA      builtin, a name in configs/data, a path or a hub id [builtin]"
	@echo "  SEED      of weights, splits, order and masks [0]"
	@echo "  DEVICES   number of GPUs, or of processes on a machine without [1, or what torchrun or Slurm started]"
	@echo "  NODES     number of machines [1, or what torchrun or Slurm started]"
	@echo "  STRATEGY  ddp, fsdp or another one of Lightning's [ddp on several devices]"
	@echo "  RESUME    auto, or the folder of a run that was interrupted and shall go on"
	@echo "  ARGS      any further key, such as ARGS=\"--model.reg.dropout=0.2\""
	@echo
	@echo "variables of make study, besides TASK, DATA and ARGS:"
	@echo "  VARIANTS  presets to compare; the first is the baseline [$(VARIANTS)]"
	@echo "  SEEDS     how many, or which: 0,1,2 [5]"
	@echo "  JOBS      runs at a time [auto: one a GPU, or as many as there are cores]"
	@echo "  THREADS   CPU threads of a run [1]"
	@echo "  LAUNCHER  local, ray or slurm [local]"
	@echo "  NAME      of the study [TASK-DATA]"
	@echo "  ARGS      also further axes: ARGS=\"--axis data.train_fraction=0.1,0.3,1.0\""
	@echo "variables of make report:     STUDY (its name), ENTITY (W&B team or user)"
	@echo "variables of make sweep:      SPACE (file of configs/sweep), TRIALS [30], REG [none], STORAGE (database)"
	@echo "variables of make dashboard:  PORT [8000]"
	@echo "variables of make bench:      BENCH (one or more of those in benchmarks) [all]"
	@echo
	@echo "examples: make train TASK=vision REG=both DATA=cifar10 SEED=1"
	@echo "          make study TASK=speech SEEDS=3"

setup: $(VENV)/.done ## Make .venv with all that is needed, at the tested versions

# Made again when the requirements change; pip leaves alone what is right already.
$(VENV)/.done: pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

train: ## Train, validate and test one model: make train TASK=vision
	@$(call given,TASK,TASK=vision$(COMMA) speech or nlp)
	@$(READY)
	@$(RUN) -m tasks.train --task "$(TASK)" --reg "$(REG)" --data "$(DATA)" --seed "$(SEED)" --devices "$(DEVICES)" \
		--nodes "$(NODES)" --strategy "$(STRATEGY)" --resume "$(RESUME)" $(ARGS)

study: ## Train variants over seeds and say what each gains: make study TASK=vision SEEDS=3
	@$(call given,TASK,TASK=vision$(COMMA) speech or nlp)
	@$(READY)
	@$(RUN) -m study.run --task "$(TASK)" --data "$(DATA)" --variants "$(VARIANTS)" --seeds "$(SEEDS)" --jobs "$(JOBS)" \
		--threads "$(THREADS)" --launcher "$(LAUNCHER)" --name "$(NAME)" --entity "$(ENTITY)" $(ARGS)

report: ## Write the pages of a study and its W&B report anew: make report STUDY=vision-builtin
	@$(call given,STUDY,STUDY=NAME; runs/studies holds: $(notdir $(wildcard runs/studies/*)))
	@$(READY)
	@$(RUN) -m study.report --study "$(STUDY)" --entity "$(ENTITY)"

sweep: ## Search for parameters: make sweep TASK=vision SPACE=configs/sweep/dropout.yaml
	@$(call given,TASK,TASK=vision$(COMMA) speech or nlp)
	@$(call given,SPACE,TASK=$(TASK) SPACE=configs/sweep/dropout.yaml)
	@$(READY)
	@$(RUN) -m study.sweep --task "$(TASK)" --data "$(DATA)" --reg "$(if $(filter file,$(origin REG)),none,$(REG))" --seed "$(SEED)" \
		--space "$(SPACE)" --trials "$(TRIALS)" --storage "$(STORAGE)" --name "$(NAME)" --jobs "$(JOBS)" --threads "$(THREADS)" $(ARGS)

dashboard: ## Serve an index of all studies and runs on localhost
	@$(READY)
	@$(RUN) -m study.dashboard --port "$(PORT)"

# Files are spread over the cores; with a thread for each, they do not wait for each other.
test: ## Run the tests
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n auto --maxprocesses 8 --dist loadfile

# ASan is loaded before Python, and the kernels are compiled with it into a cache of their own.
SANITIZED := -g -fsanitize=address,undefined -fno-sanitize-recover=all
sanitize: ## Run the kernels' tests under AddressSanitizer and UBSan
	@$(READY)
	cache=$$(mktemp -d) && trap 'rm -rf "$$cache"' EXIT && \
	XDG_CACHE_HOME="$$cache" CC="$(CC) $(SANITIZED)" ASAN_OPTIONS=detect_leaks=0 OMP_NUM_THREADS=2 \
	LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libubsan.so)" \
	$(RUN) -m pytest -q --capture=sys -p no:cacheprovider tests/modules/test_kernel_arguments.py tests/modules/test_kernels.py

lint: ## Check style and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

docs: ## Draw the pictures of docs/, measure the layers, write the evidence
	$(RUN) docs/figures/masks.py
	$(RUN) docs/figures/normalization.py
	$(RUN) docs/figures/variance_shift.py
	$(RUN) docs/figures/batch_per_device.py
	$(RUN) docs/layers.py
	$(RUN) docs/evidence.py

bench: ## Measure ours against what people would write: make bench BENCH=dropout
	@$(READY)
	@$(RUN) -m benchmarks $(BENCH)

clean: ## Delete .venv and caches; runs stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
