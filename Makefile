# Two commands. `make demo` draws a picture; `make test` checks everything.
# Both make .venv first, from pyproject.toml, with the versions in constraints.txt.

PYTHON ?= $(firstword $(foreach p,python3.13 python3.12 python3.11 python3 python,$(if $(shell command -v $(p)),$(p))))
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test clean

demo: .venv/sdpipe
	.venv/bin/sdpipe generate "red apple" --model emoji --seed 42

test: .venv/test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	OMP_NUM_THREADS=1 .venv/bin/pytest -n 2

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "sdpipe needs Python 3.11 or newer; $(PYTHON) is older. Say which: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/sdpipe: .venv/bin/python pyproject.toml constraints.txt
	.venv/bin/pip install --quiet --constraint constraints.txt --editable .
	@touch $@

.venv/test: .venv/bin/python pyproject.toml constraints.txt
	.venv/bin/pip install --quiet --constraint constraints.txt --editable ".[test,train]"
	@touch $@ .venv/sdpipe

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
