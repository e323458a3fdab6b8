# make demo | test | test-slow | lint | docs | bench | gpu. Everything runs in .venv, which any of them sets up.
.PHONY: setup demo test test-slow lint format docs bench gpu clean
PYTHON ?= python3
BIN := .venv/bin
GPU_RESULTS ?= benchmarks/results/gpu
BENCH_REPORT ?= .benchmarks/latest.json
READY := .venv/.ready

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@PYTHON=$(PYTHON) sh .ci/setup
	@touch $@

demo: $(READY)
	$(BIN)/python -m algoperf_torch.demo

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu" tests

test-slow: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow tests

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir site

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir site

# Fails where a ratio to a peer fell behind the committed one of this class of machine; UPDATE=1 commits to the new ones.
bench: $(READY)
	@mkdir -p $(dir $(BENCH_REPORT))
	$(BIN)/python -m pytest --benchmark-only --benchmark-json=$(BENCH_REPORT) benchmarks
	$(BIN)/python -m benchmarks.baseline $(BENCH_REPORT) $(if $(UPDATE),--update)

# On a machine with a GPU. The tests come first: a kernel that is wrong has no speed. What needs no device is left to `test`.
# GPU_OPTIONS="--minutes 9" fits a short lease, "--minutes 9 --resume" goes on where that stopped.
gpu: $(READY)
	ALGOPERF_TEST_DEVICE=cuda $(BIN)/python -m pytest -n 4 --dist loadfile --ignore tests/kernels/test_resources.py tests/kernels tests/gpu
	$(BIN)/python -m benchmarks.gpu --out $(GPU_RESULTS) $(GPU_OPTIONS)

clean:
	rm -rf .venv site dist .pytest_cache .mypy_cache .ruff_cache
