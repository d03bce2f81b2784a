# `make train` and `make test` work on a machine that has Python 3.11 or newer and make, and nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# The rivals of the benchmarks live in an environment of their own: RecBole asks for a Ray that is years older than ours.
RIVALS := .venv-rivals
RIVALS_INSTALLED := $(RIVALS)/.installed

.PHONY: train check lint typecheck test test-long test-slow test-triton format bench studies clean

train: $(INSTALLED)
	$(BIN)/distrec train

check: lint typecheck test test-long test-triton

lint: $(INSTALLED)
	$(BIN)/ruff check distrec tests benchmarks examples
	$(BIN)/ruff format --check distrec tests benchmarks examples

typecheck: $(INSTALLED)
	$(BIN)/mypy

test: $(INSTALLED)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-long: $(INSTALLED)
	$(BIN)/python -m pytest -m long $(PYTEST_ARGS)

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

test-triton: $(INSTALLED)  # the GPU kernels, in Triton's interpreter on the CPU
	TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/kernels tests/optim tests/training/test_device_steps.py \
	  -k "triton or float64_equals or roundings_a_step or device_steps"

format: $(INSTALLED)
	$(BIN)/ruff format distrec tests benchmarks examples
	$(BIN)/ruff check --fix distrec tests benchmarks examples

bench: $(INSTALLED) $(RIVALS_INSTALLED)
	$(BIN)/python benchmarks/speed.py --rivals $(RIVALS)/bin/python
	$(BIN)/python benchmarks/optimizer.py

studies: $(INSTALLED)  # the small size of each study in configs/studies, an hour; DISTREC_DATA=folder with ml-100k/
	$(BIN)/python benchmarks/studies.py

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(RIVALS_INSTALLED): benchmarks/rivals/requirements.txt constraints.txt
	$(PYTHON) -m venv $(RIVALS)
	$(RIVALS)/bin/python -m pip install --quiet --constraint constraints.txt --requirement benchmarks/rivals/requirements.txt
	$(RIVALS)/bin/python -m pip install --quiet --no-deps recbole==1.2.1
	touch $@

clean:
	rm -rf $(VENV) $(RIVALS)
