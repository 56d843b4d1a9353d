# Every target builds its own virtual environment in .venv when it is missing or out of date; nothing needs activating.
PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
STAMP := .venv/.installed

# Two torch processes with two threads each on two cores are ten times slower than with one each.
test test-eval test-nightly test-versions support: export OMP_NUM_THREADS = 1

# The oldest transformers that is supported, one in between, and whatever is newest today.
VERSIONS ?= 5.16.0 5.19.0 newest
VERSION_TESTS := tests/engine tests/compressors tests/test_compress.py tests/distillation/test_lockstep.py

.PHONY: help install demo test test-eval test-nightly test-versions support methods lint bench format clean always

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 15

install: $(STAMP)  ## Build .venv with Foveal (editable) and everything the other targets need

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: $(STAMP)  ## Watch a small model lose accuracy with 16 of 144 tokens, and EPIC win it back (report in foveal-demo/)
	$(BIN)/foveal demo

test: $(STAMP)  ## Run the tests
	$(BIN)/python -m pytest -n $(WORKERS)

test-eval: .venv-eval/.installed  ## Run the tests that need lmms-eval, in an environment of their own
	.venv-eval/bin/python -m pytest -n $(WORKERS) tests/lmms tests/test_public.py -k lmms

# Without its dependencies: among them is torchvision, whose usual wheel breaks a torch for the CPU.
.venv-eval/.installed: pyproject.toml constraints.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-e ".[eval-cpu]" hypothesis pytest pytest-xdist
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps lmms-eval
	touch $@

test-nightly: export FOVEAL_DRAWS = 500
test-nightly: $(STAMP)  ## Run also the long tests, and 500 random combinations instead of 60
	$(BIN)/python -m pytest -n $(WORKERS) -m "nightly or not nightly"

support: $(STAMP)  ## Make docs/support.md from the engine's tests
	$(BIN)/python -m pytest -q -n $(WORKERS) -m "nightly or not nightly" --support-matrix docs/support.md tests/engine

methods: $(STAMP)  ## Make docs/methods.md from the methods' cards
	$(BIN)/python -m foveal.cli.methods_page docs/methods.md

test-versions: $(VERSIONS:%=.venv-versions/%/.installed)  ## Run the engine's tests on several versions of transformers
	@failed=0; for version in $(VERSIONS); do \
		log=.venv-versions/$$version/tests.log; \
		.venv-versions/$$version/bin/python -m pytest -q -n $(WORKERS) $(VERSION_TESTS) >$$log 2>&1 || failed=1; \
		echo "transformers $$version: $$(tail -n 1 $$log) (see $$log)"; \
	done; exit $$failed

.venv-versions/newest/.installed: always  # looked up anew each time

.venv-versions/%/.installed: pyproject.toml constraints.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	grep -vE '^(transformers|tokenizers)==' constraints.txt >$(@D)/constraints.txt
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade -c $(@D)/constraints.txt \
		-e ".[dev]" transformers$(patsubst ==newest,,==$*)
	touch $@

lint: $(STAMP)  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## Put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# benchmarks/gpu.py is for machines that have one, benchmarks/suite.py for the environment of test-eval.
BENCHMARKS := $(patsubst benchmarks/%.py,%,$(filter-out %/shared.py %/gpu.py %/suite.py,$(wildcard benchmarks/*.py)))

bench: $(STAMP) .venv-eval/.installed  ## Measure speed (never asserted in tests)
	for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py || exit 1; done
	.venv-eval/bin/python benchmarks/suite.py

clean:  ## Remove the environment and everything that was built
	rm -rf .venv .venv-eval .venv-versions build dist foveal-demo .mypy_cache .pytest_cache .ruff_cache .hypothesis
