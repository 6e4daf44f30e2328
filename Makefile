# The first Python of 3.11 or later; another one: make PYTHON=/path/to/python3
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

.PHONY: demo test check test-oracles bench clean

demo: $(READY)  ## CFRG on procedural parts: scores, maps and runs/demo/report.html
	$(BIN)/threecad demo --out runs/demo

# Tests run side by side, so that each takes one thread unless told: OMP_NUM_THREADS=2 make test
test check: export OMP_NUM_THREADS ?= 1

test: $(READY) lint  ## everything that must pass
	$(PYTEST) -m "not oracle"

check: $(READY) lint  ## the fast half of the tests
	$(PYTEST) -m "not slow and not oracle" -q

test-oracles: $(READY)  ## comparisons with libraries that are no dependency; see CONTRIBUTING.md
	$(PYTEST) -m oracle

bench: $(READY)  ## speed and memory, as printed in docs/performance.md
	$(BIN)/python bench/all.py

.PHONY: lint
lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable '.[train]'
	touch $@

clean:  ## the environment and all runs
	rm -rf .venv runs
