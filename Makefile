# Three commands: `make demo` (the whole pipeline on this machine), `make check` (tests that start no
# training processes, and one small parity run) and `make test` (everything).
# Each first installs a virtual environment in .venv with the versions of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One stamp per set of pinned versions, so that later calls start at once.
INSTALLED := $(VENV)/installed-$(shell cat setup.py constraints.txt | cksum | cut -d' ' -f1)

# A CUDA build of torch for `make rehearse`, 5 GB; TORCH=2.11 takes the oldest supported one.
TORCH ?= 2.14
CUDA_PINS := constraints-cuda$(if $(filter 2.11,$(TORCH)),-2.11).txt
REHEARSE := .venv-rehearse-$(TORCH)
REHEARSE_INSTALLED := $(REHEARSE)/installed-$(shell cat setup.py constraints.txt $(CUDA_PINS) | cksum | cut -d' ' -f1)

# vLLM for CPUs, for `make test-serving`.
SERVING := .venv-serving
SERVING_INSTALLED := $(SERVING)/installed-$(shell cksum < tests/serving/environment.py | cut -d' ' -f1)

.PHONY: demo check test test-serving rehearse rehearse-install faults bench-cpu bench-gpu peers lint install clean

demo: install
	$(BIN)/python -m launch demo

check: install lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow or check"

test: install lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

# Tests a real vLLM behind `eval serve`, from an environment of its own: docs/chat.md.
test-serving: install $(SERVING_INSTALLED)
	SERVING_BIN=$(CURDIR)/$(SERVING)/bin $(BIN)/python -m pytest -n 0 tests/serving

$(SERVING_INSTALLED): tests/serving/environment.py
	test -x $(SERVING)/bin/python || $(PYTHON) -m venv $(SERVING)
	$(SERVING)/bin/python tests/serving/environment.py
	rm -f $(SERVING)/installed-*
	touch $@

# Runs training with CUDA on a hollow GPU, on a machine without a GPU: docs/cuda.md.
rehearse: rehearse-install
	$(REHEARSE)/bin/python -m tests.hollow -m pytest -n 2 --dist worksteal tests/hollow

rehearse-install: $(REHEARSE_INSTALLED)

$(REHEARSE_INSTALLED): setup.py constraints.txt $(CUDA_PINS)
	test -x $(REHEARSE)/bin/python || $(PYTHON) -m venv $(REHEARSE)
	grep -vE '^(torch|setuptools)==' constraints.txt > $(REHEARSE)/constraints.txt
	$(REHEARSE)/bin/python -m pip install --quiet -c $(REHEARSE)/constraints.txt -c $(CUDA_PINS) \
		setuptools wheel torch -e ".[fp8,dev]"
	rm -f $(REHEARSE)/installed-*
	touch $@

# Injects every fault of docs/faults.md and writes that page: about 20 minutes.
faults: install
	$(BIN)/python -W ignore -m tests.faults.matrix

bench-cpu: install
	$(BIN)/python benchmarks/cpu_training.py
	$(BIN)/python benchmarks/windowed_attention.py
	$(BIN)/python benchmarks/random_reads.py --quick

bench-gpu: install
	$(BIN)/python benchmarks/gpu_training.py

# Peers that conflict with the pinned packages, for `benchmarks/cpu_training.py`.
peers:
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet -r benchmarks/peers.txt

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

install: $(INSTALLED)

$(INSTALLED): setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools wheel
	$(BIN)/python -m pip install --quiet -c constraints.txt "torch" -e ".[clean,web,s3,fp8,tensorboard,finetune,eval,chat,gguf,dev]"
	rm -f $(VENV)/installed-*
	touch $@

clean:
	rm -rf $(VENV) .venv-rehearse-* $(SERVING) data runs .mypy_cache .ruff_cache .pytest_cache
