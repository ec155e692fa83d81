# `make help` lists targets and variables.
.DEFAULT_GOAL := help
.PHONY: help setup train predict export demo study advise report sweep dashboard test sanitize wheel lint docs bench clean

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
LOGGER ?=
ARGS ?=

VARIANTS ?= none dropout batchnorm both
DESIGN ?=
EFFECT ?=
SEEDS ?= 5
JOBS ?= auto
THREADS ?= 1
LAUNCHER ?= local
NAME ?=
STUDY ?=
ENTITY ?=
SPACE ?=
ARMS ?= none dropout batchnorm both
BUDGET ?= 30m
PRECISION ?= 0.5
TRIALS ?= 30
STORAGE ?=
PORT ?= 8000
CKPT ?=
CKPT2 ?=
INPUT ?=
TEXT ?=
OUT ?=
MC ?=
FORMAT ?= onnx
BENCH ?=

# Check of all targets that run the project.
READY = test -x $(RUN) || { echo "error: $(VENV) does not exist; run make setup first" >&2; exit 2; }
# given: name of a required variable, and an example
given = test -n "$($(1))" || { echo "error: $(1) is missing: make $@ $(2)" >&2; exit 2; }

help: ## Show this help
	@echo "usage: make TARGET [VARIABLE=VALUE ...]"
	@echo
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  \1\t\2/' | expand -t 12
	@echo
	@echo "variables of make train:"
	@echo "  TASK      $(notdir $(patsubst %/task.py,%,$(wildcard tasks/*/task.py))), package.module:Class or path/to/file.py:Class"
	@echo "  REG       preset of configs/reg: $(basename $(notdir $(wildcard configs/reg/*.yaml))) [both]"
	@echo "  DATA      builtin, a name in configs/data, a path, file.py:function or a Hugging Face hub id [builtin]"
	@echo "  SEED      random seed of weights, splits, order and masks [0]"
	@echo "  DEVICES   number of GPUs, or of processes if there is no GPU [1, or as set by torchrun or Slurm]"
	@echo "  NODES     number of machines [1, or as set by torchrun or Slurm]"
	@echo "  STRATEGY  Lightning strategy, such as ddp or fsdp [ddp on several devices]"
	@echo "  RESUME    auto, or the directory of an interrupted run to continue"
	@echo "  LOGGER    wandb, tensorboard, csv and mlflow: one, or several in quotes [wandb]"
	@echo "  ARGS      any other options, such as ARGS=\"--model.reg.dropout=0.2\""
	@echo
	@echo "variables of make study, in addition to TASK, DATA, LOGGER and ARGS:"
	@echo "  VARIANTS  presets to compare; the first is the baseline [$(VARIANTS)]"
	@echo "  DESIGN    ablation (REG, and it without each part), kinds (without each kind of regularizer) or factorial"
	@echo "            (dropout x normalization of REG) [VARIANTS]"
	@echo "  REG       recipe of DESIGN [full, or both]"
	@echo "  EFFECT    smallest effect of interest in points, such as 1.0 [none]"
	@echo "  SEEDS     number of seeds, or a list: 0,1,2 [5]"
	@echo "  JOBS      parallel runs [auto: one per GPU, or one per core]"
	@echo "  THREADS   CPU threads per run [1]"
	@echo "  LAUNCHER  local, ray or slurm [local]"
	@echo "  NAME      name of the study [TASK-DATA]"
	@echo "  ENTITY    W&B team or user of the report [your own]"
	@echo "  ARGS      also axes to vary: ARGS=\"--axis data.train_fraction=0.1,0.3,1.0\""
	@echo "variables of make advise:     ARMS (presets or files to compare; the first is the baseline) [$(ARMS)], BUDGET (time:"
	@echo "                              90s, 30m, 2h) [$(BUDGET)], PRECISION (half width of the intervals, in points) [$(PRECISION)],"
	@echo "                              and TASK, DATA, DESIGN, REG, LOGGER, JOBS, THREADS, NAME, ENTITY and ARGS as above"
	@echo "variables of make report:     STUDY (name of the study), ENTITY (W&B team or user)"
	@echo "variables of make sweep:      SPACE (file in configs/sweep), TRIALS [30], SEEDS of each trial [1], REG [none], STORAGE (database"
	@echo "                              URL), and TASK, DATA, SEED, LOGGER, JOBS, THREADS, NAME and ARGS as above"
	@echo "variables of make predict:    CKPT (checkpoint, run, or folder of runs), INPUT (file, folder, pattern, table, or - for"
	@echo "                              standard input), TEXT, OUT (.csv, .jsonl or .parquet), MC (passes of Monte Carlo dropout), ARGS"
	@echo "variables of make export:     CKPT, FORMAT (onnx, pt2, safetensors or hf) [onnx], OUT (folder), INPUT (files to check on), ARGS"
	@echo "variables of make demo:       CKPT, CKPT2 (a second checkpoint to compare), PORT [7860], MC (passes of Monte Carlo dropout) [20], ARGS"
	@echo "variables of make dashboard:  PORT [8000]"
	@echo "variables of make bench:      BENCH (names of benchmarks) [all]"
	@echo
	@echo "examples: make train TASK=vision REG=both DATA=cifar10 SEED=1"
	@echo "          make study TASK=speech SEEDS=3"
	@echo "          make predict CKPT=runs/vision-builtin-both-s0 INPUT=photos OUT=predictions.csv"

setup: $(VENV)/.done ## Create .venv with all dependencies, at the tested versions

# Rerun when the requirements change; pip keeps packages that already fit.
$(VENV)/.done: pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

train: ## Train, validate and test one model: make train TASK=vision
	@$(call given,TASK,TASK=vision$(COMMA) speech or nlp)
	@$(READY)
	@$(RUN) -m tasks.train --task "$(TASK)" --reg "$(REG)" --data "$(DATA)" --seed "$(SEED)" --devices "$(DEVICES)" \
		--nodes "$(NODES)" --strategy "$(STRATEGY)" --resume "$(RESUME)" --logger "$(LOGGER)" $(ARGS)

# Without CKPT, the error lists the newest runs.
predict: ## Predict with a trained model: make predict CKPT=runs/vision-builtin-both-s0 INPUT=photos
	@$(READY)
	@$(RUN) -m tasks.predict $(if $(CKPT),--ckpt "$(CKPT)") $(if $(INPUT),--input "$(INPUT)") $(if $(TEXT),--text "$(TEXT)") \
		$(if $(OUT),--out "$(OUT)") $(if $(MC),--mc "$(MC)") $(ARGS)

export: ## Export a trained model: make export CKPT=runs/vision-builtin-both-s0 FORMAT=onnx
	@$(READY)
	@$(RUN) -m tasks.export $(if $(CKPT),--ckpt "$(CKPT)") --format "$(FORMAT)" $(if $(OUT),--out "$(OUT)") \
		$(if $(INPUT),--input "$(INPUT)") $(ARGS)

demo: ## Open a trained model in the browser: make demo CKPT=runs/vision-builtin-both-s0
	@$(READY)
	@$(RUN) -m tasks.demo $(if $(CKPT),--ckpt "$(CKPT)") $(if $(CKPT2),--ckpt "$(CKPT2)") \
		$(if $(filter file,$(origin PORT)),,--port "$(PORT)") $(if $(MC),--mc "$(MC)") $(ARGS)

study: ## Train variants over seeds and report the gain of each: make study TASK=vision SEEDS=3
	@$(call given,TASK,TASK=vision$(COMMA) speech or nlp)
	@$(READY)
	@$(RUN) -m study.run --task "$(TASK)" --data "$(DATA)" --variants "$(VARIANTS)" --design "$(DESIGN)" \
		--reg "$(if $(filter file,$(origin REG)),,$(REG))" --effect "$(EFFECT)" --seeds "$(SEEDS)" --jobs "$(JOBS)" \
		--threads "$(THREADS)" --launcher "$(LAUNCHER)" --logger "$(LOGGER)" --name "$(NAME)" --entity "$(ENTITY)" $(ARGS)

advise: ## Find the best regularization within a time budget: make advise TASK=vision BUDGET=30m
	@$(call given,TASK,TASK=vision$(COMMA) speech or nlp)
	@$(READY)
	@$(RUN) -m study.advise --task "$(TASK)" --data "$(DATA)" --arms "$(ARMS)" --design "$(DESIGN)" \
		--reg "$(if $(filter file,$(origin REG)),,$(REG))" --budget "$(BUDGET)" --precision "$(PRECISION)" \
		--jobs "$(JOBS)" --threads "$(THREADS)" --logger "$(LOGGER)" --name "$(NAME)" $(if $(ENTITY),--entity "$(ENTITY)") $(ARGS)

report: ## Rewrite the pages and the W&B report of a study: make report STUDY=vision-builtin
	@$(call given,STUDY,STUDY=NAME; runs/studies holds: $(notdir $(wildcard runs/studies/*)))
	@$(READY)
	@$(RUN) -m study.report --study "$(STUDY)" --effect "$(EFFECT)" --entity "$(ENTITY)"

sweep: ## Search for hyperparameters: make sweep TASK=vision SPACE=configs/sweep/dropout.yaml
	@$(call given,TASK,TASK=vision$(COMMA) speech or nlp)
	@$(call given,SPACE,TASK=$(TASK) SPACE=configs/sweep/dropout.yaml)
	@$(READY)
	@$(RUN) -m study.sweep --task "$(TASK)" --data "$(DATA)" --reg "$(if $(filter file,$(origin REG)),none,$(REG))" --seed "$(SEED)" \
		--seeds "$(if $(filter file,$(origin SEEDS)),1,$(SEEDS))" --space "$(SPACE)" --trials "$(TRIALS)" --storage "$(STORAGE)" --logger "$(LOGGER)" --name "$(NAME)" --jobs "$(JOBS)" --threads "$(THREADS)" $(ARGS)

dashboard: ## Serve an index of all studies and runs on localhost
	@$(READY)
	@$(RUN) -m study.dashboard --port "$(PORT)"

# Test files run in parallel on all cores, with one thread each to avoid contention.
test: ## Run the tests
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

# ASan is loaded before Python; the kernels are compiled with it into a separate cache.
SANITIZED := -g -fsanitize=address,undefined -fno-sanitize-recover=all
sanitize: ## Run the kernels' tests under AddressSanitizer and UBSan
	@$(READY)
	cache=$$(mktemp -d) && trap 'rm -rf "$$cache"' EXIT && \
	XDG_CACHE_HOME="$$cache" CC="$(CC) $(SANITIZED)" ASAN_OPTIONS=detect_leaks=0 OMP_NUM_THREADS=2 \
	LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libubsan.so)" \
	$(RUN) -m pytest -q --capture=sys -p no:cacheprovider tests/modules/test_kernel_arguments.py tests/modules/test_kernels.py

# Build from tracked files only, as in a clean clone.
wheel: ## Build the wheel of the layers and test it in a fresh environment
	@$(READY)
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && mkdir "$$folder/source" && \
	git ls-files -z | tar --create --null --files-from=- | tar --extract --directory "$$folder/source" && \
	$(RUN) -m pip wheel --quiet --no-deps --wheel-dir "$$folder/dist" "$$folder/source" && \
	$(RUN) -m venv "$$folder/env" && \
	"$$folder/env/bin/python" -m pip install --quiet --constraint constraints.txt "$$folder"/dist/*.whl && \
	XDG_CACHE_HOME="$$folder/cache" "$$folder/env/bin/python" -I tests/installed.py && \
	mkdir -p dist && cp "$$folder"/dist/*.whl dist

lint: ## Check style and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

# The scripts import `tasks` and `study`, which are not installed.
docs: export PYTHONPATH := $(CURDIR)
docs: ## Draw the figures of docs/, measure the layers, write the evidence
	$(RUN) docs/figures/masks.py
	$(RUN) docs/figures/normalization.py
	$(RUN) docs/figures/variance_shift.py
	$(RUN) docs/figures/batch_per_device.py
	$(RUN) docs/layers.py
	$(RUN) docs/evidence.py
	$(RUN) docs/advised.py
	$(RUN) docs/published.py
	$(RUN) docs/regimes.py
	$(RUN) docs/standard.py
	$(RUN) docs/choose.py
	$(RUN) docs/defaults.py
	$(RUN) docs/runs.py
	$(RUN) docs/front.py
	$(RUN) docs/simulations.py

bench: ## Compare speed with other implementations: make bench BENCH=dropout
	@$(READY)
	@$(RUN) -m benchmarks $(BENCH)

clean: ## Delete .venv and caches, but no runs
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
