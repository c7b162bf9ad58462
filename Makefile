# make demo: set up, build the coloured digits, sample them, show pictures and a table.   make test: set up, check, test.
# make prove: set up, run the slow proofs.   Everything is installed in .venv; PYTHON names the interpreter that makes it.
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo test prove format clean

demo: $(VENV)/.demo
	$(VENV)/bin/python -m tools.demo

test: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest --numprocesses 2 --dist loadfile

prove: $(VENV)/.dev
	$(VENV)/bin/pytest -m slow

format: $(VENV)/.dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf build out $(VENV)

# Install torch first, at the tested version: a range would take the newest build, with gigabytes of CUDA packages.
$(VENV)/.demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable ".[cpu,export]"
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PIP) --editable ".[cpu,export,dev]"
	touch $@
