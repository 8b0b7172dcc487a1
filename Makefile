# Everything runs from a fresh clone with Python 3.10 or newer and access to the package index. (A package without a
# wheel for the machine needs a C compiler.)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# --no-compile: Python compiles modules on import; compiling all of them takes longer than the download.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable

.PHONY: demo test check format benchmark clean

## Learn a short quickstart stream by fine-tuning and with the default, add a type, find entities.
demo: $(VENV)/.installed
	$(BIN)/python -m benchmarks.demo

## Run all tests, with tensor shapes checked.
test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal

## Run lint, format and type checks.
check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

## Format the code and fix lint errors automatically.
format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

## Measure training speed relative to a bare PyTorch loop.
benchmark: $(VENV)/.installed
	$(BIN)/python -m benchmarks.train_speed

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "pip>=23.1"  # older ones cannot build seqeval
	touch $@

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/.created
	$(INSTALL) ".[minilm]"
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/.created
	$(INSTALL) ".[dev]"
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) runs models .pytest_cache .mypy_cache .ruff_cache .hypothesis
