# Two commands do everything on a fresh machine with Python 3.11+ and make:  make index,  make test
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What labelling needs, and what working on the program needs beyond it.
READY := $(VENV)/.ready
READY_DEV := $(VENV)/.ready-dev
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

OUT ?= labels.parquet
# With no VIDEOS, the archive that the program makes itself, and the weights that know what it shows.
VIDEOS ?= samples
WEIGHTS ?= $(if $(filter samples,$(VIDEOS)),motions,k400)
ARGS ?=

# gpu-check runs with a Python that has torch and pytest already, from a bare checkout.
GPU_PYTHON ?= python3
RESULTS ?= bench/results
comma := ,

.PHONY: help setup index test test-all test-kernels check lint types bench gpu-check gpu-tune clean

help:
	@echo "make index [VIDEOS=folder] [OUT=labels.parquet] [WEIGHTS=k400]   label videos (sample videos, with our weights, if none are named)"
	@echo "make test                                                        run the tests, but for the exhaustive ones"
	@echo "make test-all                                                    run every test, as CI does"
	@echo "make test-kernels                                                those of the kernels: interpreted, and compiled for GPUs"
	@echo "make check                                                       lint, types, every test"
	@echo "make bench                                                       measure, into $(RESULTS)"
	@echo "make gpu-check                                                   GPU tests and benches, no installation"
	@echo "make gpu-tune                                                    find the fastest tiles, into kernels/tuned.json"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	@touch $@

$(READY_DEV): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[dev]'
	@touch $(READY) $@

samples/labels.csv: | $(READY)
	$(BIN)/sqt-fast sample-videos samples

index: $(READY) $(if $(filter samples,$(VIDEOS)),samples/labels.csv)
	$(BIN)/sqt-fast index $(VIDEOS) --out $(OUT) --weights $(WEIGHTS) $(ARGS)

test: $(READY_DEV)
	$(BIN)/python -m pytest -n auto -m "not exhaustive" $(ARGS)

test-all: $(READY_DEV)
	$(BIN)/python -m pytest -n auto $(ARGS)

lint: $(READY_DEV)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(READY_DEV)
	$(BIN)/mypy

check: lint types test-all

bench: $(READY_DEV)
	$(BIN)/python -m bench.bench_network --results $(RESULTS)
	$(BIN)/python -m bench.bench_decode --results $(RESULTS)
	$(BIN)/python -m bench.bench_index --results $(RESULTS)
	$(BIN)/python -m bench.bench_worker --results $(RESULTS)

KERNEL_TESTS := $(patsubst %,tests/test_%.py,numerics products pointwise importance conv ctl ctl_merge downsample pool bilinear \
	squeeze squeeze_cuda fused launch tuned)

test-kernels: $(READY_DEV)
	$(BIN)/python -m pytest -n auto $(KERNEL_TESTS) tests/test_compile.py tests/test_fold.py tests/test_graphed.py $(ARGS)

# The most important first, each with a limit: 10 minutes in all. What fails does not stop the rest, but the exit code says so.
HAS = $(GPU_PYTHON) -c 'import $(1)' 2>/dev/null

gpu-check:
	@mkdir -p $(RESULTS); status=0; export FAIL_WITHOUT_CUDA=1; \
	step() { limit=$$1; shift; echo "== $$*"; timeout -k 5 $$limit "$$@" || { echo "== failed ($$?): $$*"; status=1; }; }; \
	pytest() { limit=$$1; shift; step $$limit $(GPU_PYTHON) -m pytest -q -o addopts= -o filterwarnings=default -p no:cacheprovider "$$@"; }; \
	decodes=$$($(call HAS,av$(comma) nvidia.dali$(comma) cv2) && echo yes); \
	pytest 150 $$($(call HAS,xdist) && echo "-n 12") tests/test_cuda.py $(KERNEL_TESTS); \
	if [ "$$decodes" ]; then \
		pytest 90 -m needs_cuda tests/test_cuda_decode.py tests/test_cuda_index.py; \
		step 90 $(GPU_PYTHON) -m bench.bench_routes --device cuda --results $(RESULTS); \
	fi; \
	step 130 $(GPU_PYTHON) -m bench.bench_kernels --budget 70 --results $(RESULTS); \
	step 80 $(GPU_PYTHON) -m bench.bench_network --device cuda --precision bf16 --budget 30 --results $(RESULTS); \
	step 30 $(GPU_PYTHON) -m bench.bench_kernels --dtype fp16 fp32 --providers triton cupy eager --results $(RESULTS); \
	if [ "$$decodes" ]; then \
		step 30 $(GPU_PYTHON) -m bench.bench_train_loader --device cuda --clips 2000 --results $(RESULTS); \
	fi; \
	exit $$status

# Batches as they come, the largest first: what it has found is kept when its time is up.
gpu-tune:
	$(GPU_PYTHON) -m sqt_fast tune --batch-size 256 --batch-size 64 --batch-size 8 --budget 150 --out kernels/tuned.json

clean:
	rm -rf $(VENV) build samples labels.parquet labels.parquet.parts *.egg-info
