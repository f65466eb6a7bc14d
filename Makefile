# Everything a newcomer types. `make setup` builds .venv from the declared dependencies; the rest use it.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test quick matrix faults lint bench bench-peers clean

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[test,lint]"
	touch $@

setup: .venv/ready

demo: setup
	$(BIN)/ptystream demo $(DEMO)

test: setup
	$(BIN)/python -P -m pytest -n 2 --dist loadfile $(TESTS)

quick: setup
	$(BIN)/python -P -m pytest -n 2 --dist loadfile -m "not slow" $(TESTS)

matrix: setup
	$(BIN)/python tests/matrix.py

faults: setup
	$(BIN)/python tests/faults.py

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python benchmarks/run.py

bench-peers: setup
	$(BIN)/python benchmarks/dm.py --peers

clean:
	rm -rf .venv build *.egg-info
