# Development commands; `make help` lists them.
PYTHON ?= python3
# The oldest supported Python that runs here: a version manager's shim may exist without its Python.
PYTHON_MIN ?= $(shell for one in python3.10 python3.11 python3; do $$one -c '' 2>/dev/null && echo $$one && break; done)
VENV := .venv
VENV_MIN := .venv-min
VENV_RAY := .venv-ray
SITE := import site; print(site.getsitepackages()[0])
RUN := $(VENV)/bin/python
# By a path, not by setuptools' import hook: Python would take a clone named pspexp for the package in the folder above it.
EDITABLE := --config-settings editable_mode=compat --editable
SHELL := /bin/bash

.DEFAULT_GOAL := help
.PHONY: docs docs-serve reference help quickstart test lint types imports pytest test-cuda test-min test-wheel test-browser test-ray soak bench-check screenshots format hooks clean

help: ## list all targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

$(VENV)/.installed: setup.cfg constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@echo 'Installing the packages into $(VENV) takes a few minutes.'
	$(RUN) -m pip install --quiet --constraint constraints.txt $(EDITABLE) .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(RUN) -m pip install --quiet --constraint constraints.txt $(EDITABLE) '.[dev]'
	touch $@

$(VENV)/.installed-browser: $(VENV)/.installed-dev
	$(RUN) -m pip install --quiet --constraint constraints.txt $(EDITABLE) '.[browser]'
	touch $@

$(VENV)/.installed-docs: $(VENV)/.installed-dev
	$(RUN) -m pip install --quiet --constraint constraints.txt $(EDITABLE) '.[docs]'
	touch $@

quickstart: $(VENV)/.installed ## create .venv and train a small network for a few minutes; no data needed
	$(RUN) -m pspexp experiment=quickstart

test: lint types imports pytest ## create .venv and run all checks that must pass

lint: $(VENV)/.installed-dev ## ruff: rules and formatting
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/.installed-dev ## mypy --strict on the package
	$(VENV)/bin/mypy

imports: $(VENV)/.installed-dev ## the import contract: layers, no cycles
	$(VENV)/bin/lint-imports

# One worker more than CI's two cores: tests often wait for processes and servers.
pytest: $(VENV)/.installed-dev ## run the test suite
	$(RUN) -m pytest -n 3 --dist loadfile --no-loadscope-reorder --durations 25

test-cuda: $(VENV)/.installed-dev ## run the tests that need a CUDA GPU; GPUs are hidden from all others
	$(RUN) -m pytest -m cuda

soak: $(VENV)/.installed-dev ## kill commands at random moments, repeat other faults, update docs/reliability.md; hours
	$(RUN) -m tools.soak
	$(RUN) -m tools.soak --report docs/reliability.md

bench-check: $(VENV)/.installed-dev ## compare ratios of speeds with tools/bench/expected.json; on an idle machine
	$(RUN) -m tools.bench.check

format: $(VENV)/.installed-dev ## fix and format the code with ruff
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

hooks: $(VENV)/.installed-dev ## install the git hook that runs the checks before every commit
	$(VENV)/bin/pre-commit install

$(VENV_MIN)/.installed: setup.cfg constraints-min.txt
	test -x $(VENV_MIN)/bin/python || $(PYTHON_MIN) -m venv $(VENV_MIN)
	$(VENV_MIN)/bin/python -m pip install --quiet --constraint constraints-min.txt \
		$(EDITABLE) . pytest pytest-xdist scikit-learn torchmetrics
	touch $@

# What depends on the versions of torch, Hydra and MLflow. Of the slow tests: starting and stopping processes, and a sweep.
MIN_TESTS := tests/{config,data,engine,inference,launchers,losses,metrics,models,optim,sweep,tracking,utils} \
	tests/end_to_end/test_{train_and_test,resume,predict,export,fine_tuning,own_network,loggers}.py
test-min: $(VENV_MIN)/.installed ## run most of the quick and some slow tests with the oldest supported versions (torch 2.4)
	$(VENV_MIN)/bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not slow" \
		--ignore tests/data/preparation $(MIN_TESTS)
	$(VENV_MIN)/bin/python -m pytest -n 2 -m slow \
		tests/end_to_end/test_processes.py tests/end_to_end/test_engines.py tests/engine/test_distributed.py tests/engine/test_sdaa.py

test-wheel: $(VENV)/.installed-dev ## build and check an sdist and a wheel, install it in a new environment, run it elsewhere
	tests/wheel.sh $(RUN)

test-browser: $(VENV)/.installed-browser ## check a sweep in MLflow's pages; needs Debian's chromium
	$(RUN) -m pytest tests/browser

screenshots: $(VENV)/.installed-browser ## run test-browser and update docs/img/mlflow_*.png
	PSPEXP_SCREENSHOTS=docs/img $(RUN) -m pytest tests/browser --basetemp /tmp/pspexp-screenshots

# Material's makers announce its successor at every start.
docs docs-serve: export NO_MKDOCS_2_WARNING := 1
docs: $(VENV)/.installed-docs ## build the documentation as a site in site/; broken links are errors
	$(VENV)/bin/mkdocs build --strict

docs-serve: $(VENV)/.installed-docs ## show the documentation at http://127.0.0.1:8000 while it is edited
	$(VENV)/bin/mkdocs serve --dev-addr 127.0.0.1:8000

reference: $(VENV)/.installed-dev ## update what is generated in docs/: configuration, messages, picture of the imports
	$(RUN) -m tools.reference
	$(RUN) -m tools.architecture
	$(RUN) -m tools.messages

# Ray's plugin needs an older cloudpickle than joblib does. This environment therefore adds its packages on top of those in
# .venv, included through a .pth file; pip resolves and checks both together.
$(VENV_RAY)/.installed: $(VENV)/.installed-dev
	test -x $(VENV_RAY)/bin/python || $(RUN) -m venv $(VENV_RAY)
	$(RUN) -c '$(SITE)' > "$$($(VENV_RAY)/bin/python -c '$(SITE)')/beneath.pth"
	$(VENV_RAY)/bin/python -m pip install --quiet --constraint constraints.txt $(EDITABLE) '.[ray]'
	$(VENV_RAY)/bin/python -m pip check
	touch $@

test-ray: $(VENV_RAY)/.installed ## run a sweep through Ray, in an environment of its own (conflicts with joblib)
	$(VENV_RAY)/bin/python -m pytest tests/end_to_end/test_engines.py -k ray

clean: ## remove environments and caches, but not outputs/
	rm -rf $(VENV) $(VENV_MIN) $(VENV_RAY) build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
