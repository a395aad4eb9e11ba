# Two commands. `make demo` draws an image; `make test` checks all that a change breaks easily.
# Both make .venv first, from pyproject.toml, with the versions in constraints.txt.

# The first of these that runs and is new enough; `make PYTHON=/path/to/python` says which.
IS_NEW_ENOUGH = -c 'import sys; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
  $$p $(IS_NEW_ENOUGH) >/dev/null 2>&1 && echo $$p && break; done)
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test test-slow test-browser test-hostile docs test-cluster golden figures clean

demo: .venv/sdpipe
	.venv/bin/sdpipe generate "red apple" --model emoji --seed 42

test: .venv/test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	OMP_NUM_THREADS=1 .venv/bin/pytest -n 2

# What takes some ten seconds each: torch.compile, a training in two processes, one that learns, the
# doctor's trial in a whole and in a broken installation, the examples, a row of the benchmark, the
# memory of loading, and what a new process warns of and imports.
test-slow: .venv/test
	OMP_NUM_THREADS=1 .venv/bin/pytest -n 2 -m "slow and not cluster"

# The page in Chromium, driven by Node, and OpenAI's package for Node; says so and ends where either
# is missing. As root it gets Chromium from Debian. SHOTS=FOLDER keeps screenshots to look at.
CHROMIUM ?= /usr/bin/chromium
test-browser: .venv/test
	@command -v node >/dev/null && command -v npm >/dev/null || { echo "skipped: Node is not here"; exit 0; }; \
	if [ ! -x $(CHROMIUM) ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  export DEBIAN_FRONTEND=noninteractive; timeout 300 apt-get update -qq && \
	  timeout 300 apt-get install -qq --no-install-recommends chromium >/dev/null; fi; \
	[ -x $(CHROMIUM) ] || { echo "skipped: $(CHROMIUM) is not here"; exit 0; }; \
	timeout 300 npm ci --prefix tests/browser --no-audit --no-fund --silent || { echo "skipped: npm has no packages"; exit 0; }; \
	CHROMIUM=$(CHROMIUM) timeout 600 node tests/browser/browser.js $(CURDIR)/.venv/bin/python

# Makes hostile files by the thousand, and sees that each is read or refused: minutes.
test-hostile: .venv/test
	OMP_NUM_THREADS=1 .venv/bin/python tests/hostile/watch.py

# Builds the site, strictly, after running every command that its pages show as it stands.
docs: .venv/docs
	.venv/bin/pytest -m docs tests/test_docs.py
	.venv/bin/mkdocs build --quiet

# Kills actors, a node and drivers of a Ray cluster of two nodes; MARKS='cluster and not slow' is short.
# Ray is large, and has no wheel for some machines: where it cannot be installed and started, nothing
# is tested.
MARKS = cluster
START_RAY = import ray, ray.data; ray.init('local', num_cpus=1, include_dashboard=False); ray.shutdown()
test-cluster: .venv/test
	@if $(MAKE) --silent .venv/ray && timeout 180 .venv/bin/python -c "$(START_RAY)" >/dev/null 2>&1; then \
	  OMP_NUM_THREADS=1 timeout 900 .venv/bin/pytest tests/batch/test_cluster.py -m "$(MARKS)"; \
	else echo "make test-cluster: skipped, for Ray cannot be installed and started here."; fi

# Writes all messages and help pages anew, to be reviewed by eye.
golden: .venv/test
	PYTHONPATH=tests .venv/bin/python -m support.golden

# Writes the tables of the measured results into benchmarks/README.md.
figures: .venv/test
	.venv/bin/python benchmarks/figures.py

.venv/bin/python:
	@$(or $(PYTHON),false) $(IS_NEW_ENOUGH) || \
	  { echo "sdpipe needs Python 3.11 or newer, and none is here. Say where: make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/sdpipe: .venv/bin/python pyproject.toml constraints.txt
	.venv/bin/pip install --quiet --constraint constraints.txt --editable .
	@touch $@

.venv/test: .venv/bin/python pyproject.toml constraints.txt
	.venv/bin/pip install --quiet --constraint constraints.txt --editable ".[test,train,show,serve]"
	@touch $@ .venv/sdpipe

.venv/ray: .venv/test
	.venv/bin/pip install --quiet --constraint constraints.txt --editable ".[ray]"
	@touch $@ .venv/test .venv/sdpipe

.venv/docs: .venv/test
	.venv/bin/pip install --quiet --constraint constraints.txt --editable ".[docs]"
	@touch $@ .venv/test .venv/sdpipe

clean:
	rm -rf .venv site build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
