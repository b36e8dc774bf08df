# `make pretrain` and `make test` do all set-up themselves; what they install stays in .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
RUN := .venv/bin/python
ARGS ?=
# torch from the index may be a CUDA build on a machine without a GPU.
DEVICE := $(if $(shell command -v nvidia-smi),auto,cpu)

.PHONY: pretrain test test-all bench clean

pretrain: .venv/installed  ## the quick start; ARGS="--steps 50" adds options of train
	$(RUN) -m pretrain train ul2_tiny --run-dir runs/quickstart --device $(DEVICE) $(ARGS)

test: .venv/installed  ## what CI runs
	$(RUN) -m pytest -n auto --dist loadfile -m "not slow and not gpu"

test-all: .venv/installed  ## and what takes longer, and what needs a GPU where there is one
	$(RUN) -m pytest -n auto --dist loadfile

bench: .venv/installed  ## speed of skipped layers; writes bench/results/
	$(RUN) -m bench.path_speed

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --requirement requirements.txt
	touch $@

clean:  ## everything that make made, runs excepted
	rm -rf .venv .pytest_cache .hypothesis
