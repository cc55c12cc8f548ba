# Everything that a fresh machine needs: `make demo`, `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo test test-all test-web test-lowest check format bench demo-model dist docs clean

# torch first and pinned: another version may pull gigabytes of CUDA libraries.
$(VENV)/installed: pyproject.toml constraints.txt setup.py src/llavakit/kernels/cpu.cpp
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install torch -c constraints.txt
	$(PIP) install -e '.[dev]' -c constraints.txt
	touch $@

demo: $(VENV)/installed  ## ask bundled pictures and a PDF, through the bundled model
	$(BIN)/python examples/demo.py

test: $(VENV)/installed  ## the tests that a change must pass, offline, on a CPU
	$(BIN)/python -m pytest -q -n auto --dist loadfile

test-all: $(VENV)/installed  ## the slow ones too, one after the other, with new random examples
	LLAVAKIT_EXAMPLES=explore $(BIN)/python -m pytest -q -m ''

# The lowest versions that pyproject.toml allows, in an environment of its own. torch's lowest may
# come with CUDA libraries.
LOWEST := .venv-lowest
$(LOWEST)/installed: pyproject.toml constraints-lowest.txt setup.py src/llavakit/kernels/cpu.cpp
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip --disable-pip-version-check --quiet install torch -c constraints-lowest.txt
	$(LOWEST)/bin/python -m pip --disable-pip-version-check --quiet install -e '.[dev]' -c constraints-lowest.txt
	touch $@

# Old versions of libraries use what newer ones beside them deprecate: no fault of this code.
test-lowest: $(LOWEST)/installed  ## the suite on the lowest versions allowed
	$(LOWEST)/bin/python -m pytest -q -n auto --dist loadfile -W ignore::DeprecationWarning \
	  -W ignore::FutureWarning -W ignore::UserWarning:bitsandbytes

test-web: $(VENV)/installed  ## the web page in a real browser (Debian's chromium)
	@if ! command -v chromium >/dev/null && command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	  apt-get install -y --no-install-recommends chromium || \
	  { apt-get update && apt-get install -y --no-install-recommends chromium; } || \
	  echo "Chromium cannot be installed here; the tests of the page are skipped."; fi
	$(BIN)/python -m pytest -q -m web tests/web

check: $(VENV)/installed  ## format, lint, types, import layers, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q -n auto --dist loadfile

format: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/installed  ## ratios against transformers, then other engines as far as installed
	$(BIN)/python -m benchmarks.run
	$(BIN)/python -m benchmarks.peers

# One process a core, and no more than a step has parts: faster than one with as many threads.
PROCESSES = $(shell test "$$(getconf _NPROCESSORS_ONLN)" -ge 2 && echo 2 || echo 1)
demo-model: $(VENV)/installed  ## train the bundled model from seed and code alone (hours on a CPU)
	OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc-per-node $(PROCESSES) \
	  -m examples.demo_model.train

dist: $(VENV)/installed  ## wheel and sdist, proven in empty environments (minutes)
	$(BIN)/python .ci/dist.py

docs: $(VENV)/installed  ## the pages and the API reference, as HTML in docs/_build
	$(BIN)/python -m sphinx -q -E -W --keep-going -b html docs docs/_build

clean:
	rm -rf $(VENV) $(LOWEST) build dist docs/_build *.egg-info src/*.egg-info
