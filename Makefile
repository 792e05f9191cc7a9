# The verbs of the project; `make help` lists them.
#   FAMILY=onedl|openmmlab   the pinned OpenMMLab family, each in its own venv
#   ARGS='...'               more arguments for the demo's training, pytest or
#                            the benchmarks
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
# uv takes pip's index, where one is set.
UV = UV_DEFAULT_INDEX="$${UV_DEFAULT_INDEX:-$$($(PY) -m pip config get \
	global.index-url 2>/dev/null)}" VIRTUAL_ENV=$(VENV) $(VENV)/bin/uv pip

.DEFAULT_GOAL := help
.PHONY: help env demo test bench lint format clean

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' \
		Makefile

env: $(VENV)/ready ## make the pinned environment (FAMILY=onedl|openmmlab)

# One shell, so that it can be timed and stops at the first failure. A folder
# of ours is begun again after an interruption; anybody else's is left alone.
.ONESHELL:
.SHELLFLAGS := -ec
$(VENV)/ready: $(wildcard requirements/*.txt) setup.py
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || {
		echo 'Python 3.10 to 3.13 is needed: choose one, such as make env PYTHON=python3.11.' >&2
		exit 2
	}
	if [ -e $(VENV) ] && [ ! -e $(VENV)/sb_mm ]; then
		echo '$(VENV) was not made here: move it away, or install into it by pip install -e .' >&2
		exit 2
	fi
	begin=$$(date +%s); last=$$begin
	done_with() {
		now=$$(date +%s)
		printf '%-44s %4d s\n' "$$1" $$((now - last))
		last=$$now
	}
	$(PYTHON) -m venv --clear $(VENV)
	touch $(VENV)/sb_mm
	$(PY) -m pip --disable-pip-version-check install --quiet \
		-c requirements/build.txt uv
	done_with 'virtual environment in $(VENV), with uv'
	$(UV) install --quiet -r requirements/torch.txt
	done_with 'torch and torchvision'
	$(UV) install --quiet -r requirements/torch.txt -r requirements/$(FAMILY).txt \
		opencv-python-headless --overrides requirements/overrides.txt \
		--build-constraints requirements/build.txt
	done_with 'OpenMMLab ($(FAMILY))'
	$(UV) install --quiet -c requirements/torch.txt -e . \
		$(foreach name,dev export bench cluster,-r requirements/$(name).txt)
	done_with 'sb_mm and its tools'
	$(PY) -W ignore -c 'import mmcv.ops, mmdet, mmpretrain, sb_mm.models'
	done_with 'first import'
	echo "ready after $$((last - begin)) s"
	touch $@

# Each command is shown as it starts, with the checkpoint that MMEngine names.
demo: env ## draw images, train the SB-SSDLite detector on them, test it
	@set -x
	$(PY) tools/make_synthetic_voc.py --out work_dirs/demo/devkit
	$(PY) tools/train.py configs/voc/ssd_sb_synthetic.py \
		--work-dir work_dirs/demo $(ARGS)
	$(PY) tools/test.py configs/voc/ssd_sb_synthetic.py \
		"$$(cat work_dirs/demo/last_checkpoint)" \
		--work-dir work_dirs/demo --show-dir '$(CURDIR)/work_dirs/demo/drawn'

test: env ## run the tests, one worker a core
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist worksteal $(ARGS)

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
