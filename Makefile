# Every target builds its own virtual environment in .venv when it is missing or out of date; nothing needs activating.
PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
STAMP := .venv/.installed

# Two torch processes with two threads each on two cores are ten times slower than with one each.
test: export OMP_NUM_THREADS = 1

.PHONY: help install demo test lint bench format clean

help:  ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

install: $(STAMP)  ## Build .venv with Foveal (editable) and everything the other targets need

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: $(STAMP)  ## Watch a small model lose accuracy with 16 of 144 tokens, and EPIC win it back (report in foveal-demo/)
	$(BIN)/foveal demo

test: $(STAMP)  ## Run the tests
	$(BIN)/python -m pytest -n $(WORKERS)

lint: $(STAMP)  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## Put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## Measure speed (never asserted in tests)
	for file in benchmarks/bench_*.py; do $(BIN)/python "$$file" || exit 1; done

clean:  ## Remove the environment and everything that was built
	rm -rf .venv build dist foveal-demo .mypy_cache .pytest_cache .ruff_cache .hypothesis
