# Two commands: `make demo` and `make test`. Each makes .venv where it is missing, installs, and does its job.
# PYTHON=python3.12 chooses the interpreter; README says how to choose a CPU or a CUDA build of torch.

PYTHON ?= python3.11
BIN := .venv/bin
WORKERS ?= auto
PYTEST := $(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=loadfile
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test test-matrices test-all check docs install clean-state

demo: .venv/installed
	$(BIN)/tuneline init
	$(BIN)/tuneline run configs/demo.yaml

# Tests run in parallel, one worker per CPU (WORKERS=0 runs them in one process). `make test` samples the exhaustive
# matrices (architectures, methods, optimizers, ...), `make test-matrices` runs the cases that it leaves out.
test: .venv/installed
	$(PYTEST) -m "not slow"

test-matrices: .venv/installed
	$(PYTEST) -m "matrix and not slow" --matrix=rest

test-all: .venv/installed
	$(PYTEST) --matrix=whole

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry .
	$(BIN)/python scripts/prose/lint.py README.md CONTRIBUTING.md docs
	$(BIN)/hadolint infra/Dockerfile
	@# it asks for Delegate=, a privilege that the scheduler has no use for
	! $(BIN)/systemdlint --norootfs infra/tuneline-scheduler.service 2>&1 | grep --invert-match "Security.Delegate"

docs: .venv/installed
	$(BIN)/python scripts/cli_reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv || python3 -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

clean-state:
	rm -rf .tuneline .zen
