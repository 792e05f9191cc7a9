# The verbs of the project; `make help` lists them.
#   FAMILY=onedl|openmmlab   the pinned OpenMMLab family, each in its own venv
#   ARGS='...'               more arguments for the demo, pytest or the benchmarks
#   PYTHON=python3.11        the Python that the environment is made with

FAMILY ?= onedl
PYTHON ?= python3
ARGS ?=

VENV_onedl := .venv
VENV_openmmlab := .venv-openmmlab
VENV := $(VENV_$(FAMILY))
ifeq ($(VENV),)
$(error FAMILY is "$(FAMILY)"; set it to onedl or openmmlab)
endif
PY := $(VENV)/bin/python

.DEFAULT_GOAL := help
.PHONY: help env demo test bench lint format clean

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' \
		Makefile

env: ## make or complete the pinned environment (FAMILY=onedl|openmmlab)
	@$(PYTHON) tools/setup_env.py --family $(FAMILY)

demo: env ## train and evaluate the SB-SSDLite detector on drawn images
	$(PY) tools/demo.py $(ARGS)

test: env ## run the tests
	$(PY) -m pytest tests $(ARGS)

bench: env ## measure speed and memory beside the parts of others
	$(PY) benchmarks/run.py $(ARGS)

lint: env ## check style and likely bugs
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: env ## rewrite the code in the house style
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean: ## delete caches and build outputs, not the environments
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
	find sb_mm configs tools tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
