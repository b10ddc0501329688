# Two commands do everything on a fresh machine with Python 3.11+ and make:  make index,  make test
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

OUT ?= labels.parquet
WEIGHTS ?= random
# With no VIDEOS, the archive that the program makes itself.
VIDEOS ?= samples
ARGS ?=

# gpu-check runs with a Python that has torch and pytest already, from a bare checkout.
GPU_PYTHON ?= python3
RESULTS ?= bench/results

.PHONY: help setup index test check lint types bench gpu-check clean

help:
	@echo "make index [VIDEOS=folder] [OUT=labels.parquet] [WEIGHTS=k400]   label videos (sample videos if none are named)"
	@echo "make test                                                        run the tests"
	@echo "make check                                                       lint, types, tests"
	@echo "make bench                                                       measure, into $(RESULTS)"
	@echo "make gpu-check                                                   GPU tests and benches, no installation"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[dev]'
	touch $@

samples/labels.csv: | $(READY)
	$(BIN)/sqt-fast sample-videos samples

index: $(READY) $(if $(filter samples,$(VIDEOS)),samples/labels.csv)
	$(BIN)/sqt-fast index $(VIDEOS) --out $(OUT) --weights $(WEIGHTS) $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest $(ARGS)

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(READY)
	$(BIN)/mypy

check: lint types test

bench: $(READY)
	$(BIN)/python -m bench.bench_network --results $(RESULTS)
	$(BIN)/python -m bench.bench_decode --results $(RESULTS)
	$(BIN)/python -m bench.bench_index --results $(RESULTS)

gpu-check:
	FAIL_WITHOUT_CUDA=1 $(GPU_PYTHON) -m pytest -o addopts= -o filterwarnings=default -p no:cacheprovider -m needs_cuda tests/test_cuda.py $(if $(shell $(GPU_PYTHON) -c 'import av, nvidia.dali' 2>/dev/null && echo yes),tests/test_cuda_decode.py)
	$(GPU_PYTHON) -m bench.bench_network --device cuda --results $(RESULTS)

clean:
	rm -rf $(VENV) build samples labels.parquet labels.parquet.parts *.egg-info
