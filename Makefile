# Everything runs from a fresh clone with Python 3.10 or newer and a C compiler; nothing but the package index is needed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Python compiles what it imports; compiling all that is installed takes longer than the download.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable

.PHONY: demo test check format benchmark clean

## Learn the quickstart stream with and without ner_cl, add a type, find entities.
demo: $(VENV)/.installed
	$(BIN)/python -m benchmarks.demo

## All tests, with checked tensor shapes.
test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal

## Lint, format and type checks.
check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

## Put the code in the project's format.
format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

## Training speed beside a bare PyTorch loop.
benchmark: $(VENV)/.installed
	$(BIN)/python -m benchmarks.train_speed

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) ".[minilm]"
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) ".[dev]"
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) runs models .pytest_cache .mypy_cache .ruff_cache .hypothesis
