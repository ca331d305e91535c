# Each target works on a fresh clone; it needs only Python 3.11 and make.
PYTHON ?= python3
BIN := .venv/bin
SETUP := .venv/set-up
WORKERS ?= 2
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs

.PHONY: help compare test check fuzz chaos zoo keras bench docs notebooks release test-matrix clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(SETUP): pyproject.toml claims/pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[cli,compare,frames,keras,onnx,report]" --editable ./claims --group dev
	-$(BIN)/bnkit warmup
	@touch $@

compare: $(SETUP)  ## would batch norm help? digits, about a minute, a report
	$(BIN)/bnkit compare

test: $(SETUP)  ## run the tests, one torch thread for each worker
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses $(WORKERS) --quiet
	OMP_NUM_THREADS=1 BNKIT_KERNEL=torch $(BIN)/pytest --numprocesses $(WORKERS) --quiet tests/kernels/test_autograd.py tests/layers

check: $(SETUP)  ## lint, types, docs
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(MKDOCS) build --strict --quiet --site-dir .venv/site

fuzz: $(SETUP)  ## 10,000 random networks through the surgery, and 1,000 of Keras
	OMP_NUM_THREADS=1 BNKIT_FUZZ=2500 $(BIN)/pytest --numprocesses $(WORKERS) --quiet -rP tests/surgery -k "random_networks and not addition"
	OMP_NUM_THREADS=1 BNKIT_FUZZ_KERAS=500 $(BIN)/pytest --numprocesses $(WORKERS) --quiet tests/keras/test_random_graphs.py tests/keras/test_applications.py

# torch 2.14.1 with its torchvision; what they bring does not fit beside the tested torch
zoo:  ## the public networks of tests/zoo/guests.py through every verb, hours; resumes
	test -d .zoo || ($(PYTHON) -m venv .zoo && .zoo/bin/pip install --quiet torch==2.14.1 torchvision==0.29.1)
	.zoo/bin/pip install --quiet timm==1.0.31 transformers==5.24.0 segmentation-models-pytorch==0.6.0 --editable .
	.zoo/bin/python tests/zoo/matrix.py run tests/zoo/matrix.jsonl
	.zoo/bin/python tests/zoo/matrix.py page tests/zoo/matrix.jsonl

chaos: $(SETUP)  ## kills, damage and errors in large numbers; Ray and submitit
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[ray,slurm]"
	OMP_NUM_THREADS=1 $(BIN)/pytest --quiet tests/experiments/test_engines.py
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python tests/chaos.py

# TensorFlow wants other versions of what it shares with the pinned packages.
BACKEND ?= jax
keras:  ## the tests of Keras models by another backend, BACKEND=jax or tensorflow
	$(PYTHON) -m venv .venv-$(BACKEND)
	grep -v -E '^(h5py|ml_dtypes|protobuf|grpcio|tensorboard|numpy)' constraints.txt > .venv-$(BACKEND)/constraints.txt
	.venv-$(BACKEND)/bin/pip install --quiet --disable-pip-version-check --constraint .venv-$(BACKEND)/constraints.txt torch
	.venv-$(BACKEND)/bin/pip install --quiet --disable-pip-version-check --constraint .venv-$(BACKEND)/constraints.txt --editable ".[cli,compare,keras,report]" pytest pytest-xdist hypothesis $(if $(filter jax,$(BACKEND)),"jax[cpu]",tensorflow-cpu)
	KERAS_BACKEND=$(BACKEND) OMP_NUM_THREADS=1 .venv-$(BACKEND)/bin/pytest --quiet tests/keras

bench: $(SETUP)  ## measure, print and keep the figures
	$(BIN)/python benchmarks/harness.py
	$(BIN)/python benchmarks/kernels.py --tuned
	$(BIN)/python benchmarks/core.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/folding.py
	$(BIN)/python benchmarks/recalibration.py
	$(BIN)/python benchmarks/monitoring.py
	$(BIN)/python benchmarks/tables.py

release: $(SETUP)  ## build wheels and sdists, and try them in environments of their own
	PYTHONPATH=tests $(BIN)/python tests/released.py

test-matrix:  ## run the tests on the lowest, the pinned and the newest torch, hours, 7 GB at a time
	$(PYTHON) tests/torch_versions.py $(TORCH)

docs: $(SETUP)  ## serve the documentation
	$(MKDOCS) serve

notebooks: $(SETUP)  ## run the notebooks of the docs anew and keep their outputs
	$(BIN)/python docs/building/notebooks.py

clean:  ## remove what the targets made
	rm -rf .venv .venv-* .zoo bnkit-report build dist claims/build
