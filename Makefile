# Two commands on a fresh machine (Python, a C++17 compiler and pip): `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
TORCH  ?= torch torchvision# e.g. TORCH=torch==2.13.0; a torch without a matching torchvision is fine
BIN     = $(VENV)/bin

.PHONY: help install demo test lint format bench static gpu cross clean
.DEFAULT_GOAL := help

help:            ## this list
	@grep -E '^[a-z]+: .*##|^[a-z]+:  *##' $(MAKEFILE_LIST) | sed 's/:.*##/  -/'

$(VENV)/installed: pyproject.toml setup.py $(wildcard csrc/*.* csrc/*/*.*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet "setuptools>=77" wheel numpy ninja "pybind11>=2.13"
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[train,dev]"
	touch $@

install: $(VENV)/installed   ## virtual environment with fastqat built in place

demo: install    ## digits: float, W2A32 on all data, on a random tenth, on the tenth that ACS chooses; table and report
	$(BIN)/fastqat demo

test: install    ## the whole test suite
	$(BIN)/python -m pytest

lint: install    ## ruff, mypy, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror csrc/*.cpp csrc/*.h csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu

format: install  ## rewrite the sources in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i csrc/*.cpp csrc/*.h csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu

bench: install   ## the benchmark table; rows go to bench/results
	$(BIN)/fastqat bench

static: install  ## what every GPU kernel compiles to for sm 80, 90 and 100: spills, width and bytes of its accesses; needs no GPU
	$(BIN)/python -m bench.static_report

gpu: install     ## on a CUDA machine: tests, static report and benchmarks, in under ten minutes; results go to gpu_check
	PYTHON=$(BIN)/python bench/gpu_check.sh

cross: ## build a wheel against one torch, test it under another, and the reverse
	scripts/cross_torch.sh

clean: ## remove the environment and what was built
	rm -rf $(VENV) build *.egg-info fastqat/*.so
