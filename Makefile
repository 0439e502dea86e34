# Two commands: `make demo` shows what bpfchain does, `make test` passes the tests.
# Each sets up what it needs (Debian packages only where missing, the rest in .venv).
PYTHON := .venv/bin/python
PYTEST := $(PYTHON) -m pytest
FUZZ_SECONDS ?= 120
PYTEST_ARGS ?= -n 2 --dist worksteal

help:
	@echo "make demo       build, inspect and run a chain of three programs"
	@echo "make test       linters, types, import direction, all tests but the long ones"
	@echo "make test-long  all tests, the kernel matrix and the mutations too"
	@echo "make bench      cost per packet, time of the command (docs/bench.md)"
	@echo "make fuzz       100,000 mutated objects (fuzz-atheris: guided by coverage)"

demo:
	@tools/setup.sh demo
	@$(PYTHON) examples/demo.py

test: lint
	$(PYTEST) $(PYTEST_ARGS) -m "not long"

test-long: lint
	@tools/setup.sh bench
	$(PYTHON) bench/kernels/fetch.py
	$(PYTEST) $(PYTEST_ARGS)

lint: setup-test
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	.venv/bin/lint-imports

setup-test:
	@tools/setup.sh test

bench:
	@tools/setup.sh bench
	$(PYTHON) bench/cost.py --limit 1.02
	$(PYTHON) bench/nanoseconds.py
	$(PYTHON) bench/speed.py

fuzz: setup-test
	$(PYTHON) tests/fuzz/mutate.py 100000

fuzz-atheris: setup-test
	.venv/bin/python -m pip install -q 'atheris>=3.0'
	mkdir -p .build/atheris
	$(PYTHON) tests/fuzz/atheris_transform.py .build/atheris -max_total_time=$(FUZZ_SECONDS)

clean:
	rm -rf .build .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.PHONY: help demo test test-long lint setup-test bench fuzz fuzz-atheris clean
