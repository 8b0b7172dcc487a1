# Everything runs from a fresh clone with Python 3.10 or newer and a C compiler; nothing but the package index is needed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test check format benchmark clean

## Learn the quickstart stream with and without ner_cl, add a type, find entities.
demo: $(STAMP)
	$(BIN)/python -m benchmarks.demo

## All tests, with checked tensor shapes.
test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile

## Lint, format and type checks.
check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

## Training speed beside a bare PyTorch loop.
benchmark: $(STAMP)
	$(BIN)/python benchmarks/train_speed.py

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) runs models .pytest_cache .mypy_cache .ruff_cache .hypothesis
