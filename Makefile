# Two commands: `make demo` (the whole path on this machine) and `make test`.
# Both set themselves up: a virtual environment in .venv, installed under constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One stamp a set of pins: the second call of either command starts at once.
INSTALLED := $(VENV)/installed-$(shell cat setup.py constraints.txt | cksum | cut -d' ' -f1)

.PHONY: demo test lint install clean

demo: install
	$(BIN)/python -m launch demo

test: install lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

install: $(INSTALLED)

$(INSTALLED): setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools wheel
	$(BIN)/python -m pip install --quiet -c constraints.txt "torch" -e ".[clean,s3,fp8,finetune,eval,dev]"
	rm -f $(VENV)/installed-*
	touch $@

clean:
	rm -rf $(VENV) data runs .mypy_cache .ruff_cache .pytest_cache
