# Two commands: `make demo` shows what bpfchain does, `make test` passes the tests.
# Each sets up what it needs (Debian packages only where missing, the rest in .venv).
PYTHON := .venv/bin/python
PYTEST := $(PYTHON) -m pytest
NATIVE := emulator/native/Cargo.toml
FUZZ_SECONDS ?= 120
PYTEST_ARGS ?= -n 2 --dist worksteal

help:
	@echo "make demo       build, inspect and run a chain of three programs"
	@echo "make test       linters, types, import direction, all tests but the long ones"
	@echo "make test-long  the long tests too: kernel matrix, mutations, 1,000 swaps under load"
	@echo "make test-exhaustive  every kill point, every bit of an object: more than an hour"
	@echo "make bench      cost per packet, time of the command and of the proof (docs/bench.md)"
	@echo "make wheel      dist/*.whl, to install where no Rust, clang or cmake is"
	@echo "make fuzz       100,000 mutated objects (fuzz-atheris: guided by coverage)"

demo:
	@tools/setup.sh demo
	@$(PYTHON) examples/demo.py

test: lint
	$(PYTEST) $(PYTEST_ARGS) -m "not long and not exhaustive"

test-long: lint
	@tools/setup.sh bench
	$(PYTHON) bench/kernels/fetch.py
	$(PYTEST) $(PYTEST_ARGS) -m "not exhaustive"

test-exhaustive: setup-test
	$(PYTEST) -n 2 --dist worksteal -m exhaustive

lint: setup-test lint-rust
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	.venv/bin/lint-imports

# `tools/setup.sh test` sees to it that there is a cargo with both
lint-rust: setup-test
	cargo fmt --manifest-path $(NATIVE) --check
	cargo clippy --manifest-path $(NATIVE) --locked --release --quiet -- -D warnings

wheel:
	@tools/setup.sh demo
	rm -rf dist
	$(PYTHON) -m pip wheel . --no-deps --quiet --disable-pip-version-check --wheel-dir dist
	@ls dist/*.whl

setup-test:
	@tools/setup.sh test

bench:
	@tools/setup.sh bench
	$(PYTHON) bench/cost.py --limit 1.02
	$(PYTHON) bench/nanoseconds.py
	$(PYTHON) bench/speed.py
	$(PYTHON) bench/proof.py
	$(PYTHON) bench/loader.py

fuzz: setup-test
	$(PYTHON) tests/fuzz/mutate.py 100000

fuzz-atheris: setup-test
	.venv/bin/python -m pip install -q 'atheris>=3.0'
	mkdir -p .build/atheris
	$(PYTHON) tests/fuzz/atheris_transform.py .build/atheris -max_total_time=$(FUZZ_SECONDS)

clean:
	rm -rf build dist emulator/native/target emulator/bpfchain/emulator/*.so
	rm -rf .build .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.PHONY: test-exhaustive help demo test test-long lint lint-rust wheel setup-test bench fuzz fuzz-atheris clean
