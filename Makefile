# Every target sets itself up in .venv. PIP_ARGS is passed to pip (an index with CPU builds of torch, say).
PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin
SOURCES := pyproject.toml setup.py constraints.txt

.PHONY: demo test lint clean

demo: .venv/demo-ready
	$(BIN)/tivtok demo demo

test: .venv/test-ready
	$(BIN)/python -m pytest -n auto tests

lint: .venv/test-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv build demo *.egg-info

.venv/pip-ready:
	$(PYTHON) -m venv .venv
	touch $@

.venv/demo-ready: .venv/pip-ready $(SOURCES)
	$(BIN)/pip install -q $(PIP_ARGS) -c constraints.txt -e .
	touch $@

.venv/test-ready: .venv/pip-ready $(SOURCES)
	$(BIN)/pip install -q $(PIP_ARGS) -c constraints.txt -e '.[test]'
	touch $@
