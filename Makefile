# Two commands for a newcomer, `make demo` and `make test`; the others are named as Stable-Baselines3 names them.
# VENV: where the virtual environment lives. PYTHON: what creates it. EXTRAS: what of pyproject.toml goes into it.
# PIP_ARGS: more options for pip, e.g. an index of CPU-only torch wheels. PYTEST_ARGS: how to run the tests.
# GPU_ARGS: options of `make gpu`, such as --dry-run.
VENV ?= .venv
PYTHON ?= python3
EXTRAS ?= dev
PIP_ARGS ?=
PYTEST_ARGS ?= -n auto --dist worksteal
GPU_ARGS ?=

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
ENVS_BIN := $(VENV)-envs/bin
ENVS_INSTALLED := $(VENV)-envs/.installed
INSTALL := -m pip install --disable-pip-version-check --quiet --no-compile --constraint .ci/constraints.txt $(PIP_ARGS)

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

demo: $(INSTALLED)  ## train TDMPC2 on a DMControl task and compare it with SAC
	$(BIN)/python examples/demo.py

test: pytest  ## install what is needed and run all tests

pytest: $(INSTALLED)
	@# One thread a worker: the networks of the tests are tiny, and workers that fight over cores are slow.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

# Not part of `make test`: with Python 3.11 it takes a seventh more time.
coverage:  ## run all tests and show which lines of sb3_mpc/ they have executed
	$(MAKE) test PYTEST_ARGS="$(PYTEST_ARGS) --cov=sb3_mpc --cov-report=term"

test-fast: $(INSTALLED)  ## while working: without what takes seconds, and of the classes TDMPC2 alone
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS) -m "not slow and not all_envs"

test-envs: $(ENVS_INSTALLED)  ## install all suites that pip can and test every registered environment
	OMP_NUM_THREADS=1 $(ENVS_BIN)/python -m pytest tests/envs -m all_envs $(PYTEST_ARGS)

attack: $(INSTALLED)  ## the long campaign of hostile files, kills and odd arguments; takes hours
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.attack

gpu: $(INSTALLED)  ## on a machine with a GPU: verify and measure everything there, and write a report
	$(BIN)/python -m sb3_mpc.zoo gpu $(GPU_ARGS)

# mypy knows a package by its folder alone, so it is shown one whose envs and zoo are links.
type: $(INSTALLED)  ## check the types with mypy
	mkdir -p build/types/sb3_mpc
	ln -sfn $(CURDIR)/sb3_mpc/* $(CURDIR)/envs $(CURDIR)/zoo build/types/sb3_mpc
	MYPYPATH=build/types $(BIN)/python -m mypy --package sb3_mpc
	MYPYPATH=build/types $(BIN)/python -m mypy examples/demo.py

lint: $(INSTALLED)  ## look for errors with ruff
	$(BIN)/python -m ruff check

format: $(INSTALLED)  ## sort the imports and format the code
	$(BIN)/python -m ruff check --select I --fix
	$(BIN)/python -m ruff format

check-codestyle: $(INSTALLED)  ## as lint and format, but changes nothing
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check

commit-checks: format type lint  ## what to run before a commit

docs: $(INSTALLED)  ## build the documentation into docs/site
	$(BIN)/python -m mkdocs build --strict --config-file docs/mkdocs.yml

# From a clean folder: setuptools would pack what an old build/ still holds.
wheel: $(INSTALLED)  ## build the wheel into dist
	rm -rf build dist
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:  ## remove the virtual environment, the built pages and all caches
	rm -rf $(VENV) $(VENV)-envs docs/site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

# torch goes first and alone, so that a build of it that is already there (CPU, CUDA) is never replaced later. Modules
# are compiled when they are first imported, which is far fewer than pip would compile.
$(INSTALLED): pyproject.toml .ci/constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): a few minutes the first time"
	$(BIN)/python $(INSTALL) torch
	$(BIN)/python $(INSTALL) --editable '.[$(EXTRAS)]'
	touch $@

# In an environment of their own: MyoSuite and current moviepy exclude each other. Meta-World's metadata exclude
# dm_control's MuJoCo; the adapter makes it run on that one.
$(ENVS_INSTALLED): pyproject.toml .ci/constraints.txt
	test -x $(ENVS_BIN)/python || $(PYTHON) -m venv $(VENV)-envs
	@echo "Installing all suites into $(VENV)-envs: 3 GB"
	$(ENVS_BIN)/python $(INSTALL) torch
	$(ENVS_BIN)/python $(INSTALL) --editable '.[dmc,myosuite,maniskill,test]'
	$(ENVS_BIN)/python $(INSTALL) --no-deps metaworld
	touch $@

.PHONY: help demo test pytest coverage test-fast test-envs attack gpu type lint format check-codestyle commit-checks docs wheel clean
