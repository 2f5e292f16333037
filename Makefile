# `make` lists the targets. Each makes its own environment in .venv where it needs one.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TORCH := $(VENV)/.torch
DEMO := build/demo

.PHONY: help setup demo lint type test check bench gpu-check clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

setup: $(READY)  ## make the development environment in .venv

$(READY): pyproject.toml constraints-dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints-dev.txt --editable '.[rtx,report,dev]'
	touch $@

$(TORCH): $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints-dev.txt --editable '.[export]'
	-$(BIN)/python -m pip install --quiet --editable '.[ray]'  # not on every Python; tests that need it skip then
	touch $@

demo: $(TORCH)  ## export, locate and convert a trained model; show what FP16 did to its accuracy
	mkdir -p $(DEMO)
	$(BIN)/trt-helper export sample_models/digits.pt --model sample_models/digits.py:digits \
	    --input image:4x1x8x8 --dynamic image:0=1..64 -o $(DEMO)/digits.onnx
	$(BIN)/trt-helper locate $(DEMO)/digits.onnx --inputs sample_models/digits_inputs \
	    --atol 0.01 --rtol 0 -o $(DEMO)/fp32_layers.yaml
	$(BIN)/trt-helper convert --config $(DEMO)/fp32_layers.yaml --shapes image:1x1x8x8,4x1x8x8,64x1x8x8 \
	    -o $(DEMO)/digits.trt
	$(BIN)/python sample_models/accuracy.py $(DEMO)/digits.onnx $(DEMO)/fp32_layers.yaml

lint: $(READY)  ## ruff: rules and format; import-linter: which room may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

type: $(READY)  ## mypy --strict
	$(BIN)/mypy

test: $(TORCH)  ## run every test that this machine can run
	$(BIN)/python -m pytest --numprocesses logical --dist loadfile

check: lint type test  ## what CI runs: lint, type, test

bench: $(READY)  ## measure speed, memory and trials against references in the same run
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/search.py
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/growth.py
	$(BIN)/python benchmarks/gate.py
	$(BIN)/python benchmarks/engines.py
	$(BIN)/python benchmarks/processes.py
	$(BIN)/python benchmarks/tuning.py --every 6
	$(BIN)/python benchmarks/peers.py

# Runs in the environment that is there, so that a machine with PyTorch for CUDA needs no network.
gpu-check:  ## compare the emulator with a GPU, at most 8 minutes; needs PyTorch for CUDA
	PYTHONPATH=. $(shell test -x $(BIN)/python && echo $(BIN)/python || echo $(PYTHON)) benchmarks/gpu.py

clean:  ## remove everything that was made
	rm -rf build dist $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
