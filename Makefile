# `make pretrain` and `make test` do all set-up themselves; what they install stays in .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
RUN := .venv/bin/python
ARGS ?=
# The quick start runs on the GPUs that there are, 8 at most, else on two CPU processes; two pipeline ranks where possible.
GPUS := $(shell nvidia-smi -L 2>/dev/null | wc -l)
PROCESSES := $(shell n=$(GPUS); for p in 8 4 2 1; do [ $$n -ge $$p ] && break; done; [ $$n -eq 0 ] && p=2; echo $$p)
LAYOUT ?= $(if $(filter 1,$(PROCESSES)),,--parallel.pipeline 2)
DEVICE := $(if $(filter 0,$(GPUS)),cpu,cuda)

.PHONY: pretrain check lint docs test test-long test-all gpu-dry bench clean

pretrain: .venv/installed  ## the quick start; ARGS="--steps 50" adds options of train
	.venv/bin/torchrun --standalone --nproc-per-node $(PROCESSES) -m pretrain train ul2_tiny \
		--run-dir runs/quickstart --device $(DEVICE) $(LAYOUT) $(ARGS)

check: lint docs test  ## what CI runs

lint: .venv/installed  ## form, types, shell scripts, links of the docs
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy pretrain tokenizer bench
	.venv/bin/shellcheck slurm/*.sh .ci/run
	$(RUN) -m pytest tests/unit/test_docs.py

docs: .venv/installed  ## the documentation site, in site/; any warning fails
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --quiet

test: .venv/installed  ## the tests that take minutes
	$(RUN) -m pytest -n auto --dist loadfile -m "not long and not slow and not gpu"

test-long: .venv/installed  ## every layout, whole studies; CI runs it after `make check`
	$(RUN) -m pytest -n auto --dist loadfile -m long

test-all: .venv/installed .venv-lm-eval/installed  ## and what takes longer, and what needs a GPU where there is one
	$(RUN) -m pytest -n auto --dist loadfile

gpu-dry: .venv/installed  ## whole runs on a GPU that computes nothing; for CUDA builds of torch, and no driver
	$(RUN) -m pytest -n auto -rs tests/system/test_gpu_dry.py

bench: .venv/installed  ## speed of skipped layers, of making batches, of saving and loading; writes bench/results/
	$(RUN) -m bench.path_speed
	for layout in "--parallel.tensor 2" "--parallel.pipeline 2" ""; do \
		.venv/bin/torchrun --standalone --nproc-per-node 2 -m bench.path_speed $$layout || exit 1; done
	$(RUN) -m bench.data
	$(RUN) -m bench.checkpoint

.venv/installed: requirements.txt requirements/run.txt requirements/test.txt requirements/dashboards.txt requirements/check.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --requirement requirements.txt
	touch $@

.venv-lm-eval/installed: requirements/lm_eval.txt  ## EleutherAI's harness, which scores are held against
	$(PYTHON) -m venv .venv-lm-eval
	.venv-lm-eval/bin/python -m pip install --quiet --requirement requirements/lm_eval.txt
	touch $@

clean:  ## everything that make made, runs excepted
	rm -rf .venv .venv-lm-eval .pytest_cache .hypothesis .mypy_cache .ruff_cache site
