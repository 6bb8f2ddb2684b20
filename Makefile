# make demo   the whole chain on generated pictures: teacher -> student -> int8 -> ONNX, OpenVINO, TFLite -> report
# make test   all tests: the fast ones, real exports and small trainings, the boards (make fast, make slow, make board: one kind)
# Both set up .venv the first time (several GB: torch's CUDA build). uv is used where it is on PATH, else venv and pip.
# PYTHON=/path/to/python3.12 make demo   takes another interpreter (3.11 or 3.12).

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)
SUITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do "$$p" -c '$(SUITS)' 2>/dev/null && { echo "$$p"; break; }; done)

.PHONY: demo test fast slow board web venv dev lint type docs clean help
help:
	@sed -n 's/^# //p' Makefile

demo: $(VENV)/.set-up
	$(BIN)/distilledge demo

# In one session: nothing is imported three times, and what is quick fills the gaps that what is slow leaves.
test: $(VENV)/.set-up
	$(PYTEST)

fast slow board: $(VENV)/.set-up

# One process for each core, each with one thread. JOBS=0 make fast: all in one, as a debugger needs it.
JOBS ?= logical
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --maxprocesses 8 --dist loadscope --no-loadscope-reorder

fast:
	$(PYTEST) -m "not slow and not board"

# pytest exits 5 where no test carries the mark.
slow board:
	$(PYTEST) -m $@ || [ $$? -eq 5 ]

# The runtimes of the web, for devices that are browsers; the only thing that npm is needed for.
web: $(VENV)/.set-up
	$(BIN)/distilledge devices fetch-web

venv: $(VENV)/.set-up

# A stamp, so that set-up is done once, and again when what it installs changes.
$(VENV)/.set-up: pyproject.toml constraints.txt
	@$(call new_venv)
	$(call install,-e ".[test]")
	@touch $@

dev: $(VENV)/.set-up-dev
$(VENV)/.set-up-dev: $(VENV)/.set-up
	$(call install,-e ".[dev]")
	@touch $@

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: dev
	$(BIN)/mypy -p distilledge.models -p distilledge.targets -p distilledge.pipeline

# docs/recipes.md and docs/errors.md, from the source.
docs: $(VENV)/.set-up
	$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

ifneq ($(UV),)
new_venv = uv venv --quiet --allow-existing --python "$(or $(PYTHON),3.12)" $(VENV)
install = uv pip install --quiet --python $(BIN)/python -c constraints.txt $(1)
else
new_venv = [ -n "$(PYTHON)" ] || { echo "Python 3.11 or 3.12 is needed: set PYTHON=/path/to/it" >&2; exit 4; }; "$(PYTHON)" -m venv $(VENV)
install = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(1)
endif
