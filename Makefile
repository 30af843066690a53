# `make demo` and `make test` need only git, make and Python >= 3.11; the first call makes .venv and installs into it.
PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Each test process keeps to one thread: with more, two processes on two cores fight over them.
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 BLOSC_NTHREADS=1 \
	ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS=1
SOURCES := preprocessing iris_pipeline benchmarks tests

.PHONY: help install demo test check format clean

help:
	@echo "make demo    phantom scans -> store -> training -> masks -> table and page, all under demo/"
	@echo "make install the environment alone"
	@echo "make test    the tests"
	@echo "make check   format, lint, types and the tests"
	@echo "make format  rewrite the files in the house's format"
	@echo "make clean   remove the environment, the caches and demo/"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || \
		{ echo "No '$(PYTHON)' was found; install Python 3.11 or newer, or name one: make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "Python 3.11 or newer is needed, \
	and $(PYTHON) is %d.%d; name another one: make PYTHON=python3.11" % v[:2])'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) lacks the venv module; install it (Debian and Ubuntu: the package python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[dev,view]'
	@touch $@

demo: $(STAMP)
	OMP_WAIT_POLICY=passive $(BIN)/python -m iris_pipeline.demo

test: $(STAMP)
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist worksteal

check: $(STAMP)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist worksteal

format: $(STAMP)
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

clean:
	rm -rf $(VENV) demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find preprocessing iris_pipeline benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +
