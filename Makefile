# Two commands do all the set-up: `make demo` and `make test`. They need Python 3.11 or newer, nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A CPU build; the package itself takes any torch >= 2.6 (install your own first for CUDA).
TORCH ?= torch==2.13.0

.PHONY: demo test slow lint docs pocket clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.user: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --editable ".[all]"
	touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.user
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

demo: $(VENV)/.user
	$(BIN)/lengthwise download smollm2
	$(BIN)/python examples/demo.py

test: $(VENV)/.dev
	$(BIN)/python -m pytest

slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/.dev
	$(BIN)/python scripts/docs.py

# Trains the shipped pocket models again, from nothing: about an hour and a half of one core.
pocket: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python scripts/pocket/train.py all --seed 1 --out runs/pocket/1
	OMP_NUM_THREADS=1 $(BIN)/python scripts/pocket/ship.py runs/pocket/1

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache dist
