# `make demo` and `make test` do everything on a fresh machine with Python >= 3.11: they install into .venv and run.
PYTHON ?= python3
# GenSBI, which only `make bench-inference` needs, wants Python >= 3.12.
PYTHON312 ?= python3.12
BIN := .venv/bin
PEERS := benchmarks/.venv/bin
# Idle OpenMP threads sleep instead of spinning: several times faster on a busy machine.
export OMP_WAIT_POLICY ?= PASSIVE
# One test process a core, one thread each. A process gets half of the tests in their order, and takes of the other's when
# it is done, so that few fixtures of a file are made by both. Compiled files are kept for the processes that tests start.
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q -n auto --dist worksteal

.PHONY: demo test check laws coverage lint types imports golden sizes recorded bench bench-solvers bench-inference docs site docs-check app-check clean

# What of pyproject.toml's extras `.venv/installed` brings: CI installs all that it needs at once, which takes less time.
EXTRAS ?= dev

# Packages are compiled when they are first imported: most of their files never are, and to compile all takes 40 s.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "openedm needs Python 3.11 or later")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@

demo: .venv/installed  ## train, sample and score on the digits, in minutes
	$(BIN)/openedm demo

# Which tests: all but those that compare with reference numbers. `make test SELECT=` takes these, too.
SELECT ?= -m 'not golden'

test: .venv/installed  ## the tests, without those that compare with reference numbers
	$(PYTEST) $(SELECT)

# Laws and examples of the small rooms and of sampling, each law on five examples: half of the tests in a minute.
FAST := src tests/ground tests/data tests/generation tests/properties tests/sampling tests/test_checks.py \
  tests/test_denoiser.py tests/test_exact.py tests/test_guidance.py tests/test_levels.py tests/test_measurements.py \
  tests/test_objective.py tests/test_optimisation.py tests/test_package.py tests/test_preconditioning.py \
  tests/test_schedules.py

check: lint types imports  ## what to run every few minutes: lint, types, import rules, a fast part of the tests
	OPENEDM_EXAMPLES=5 $(PYTEST) -m 'not golden and not slow' $(FAST)

laws: .venv/installed  ## the tests with 200 examples of each law instead of 30
	OPENEDM_EXAMPLES=200 $(PYTEST) -m 'not golden'

coverage: .venv/installed  ## the tests, and the lines that none of them runs
	$(PYTEST) -m 'not golden' --cov --cov-report=term:skip-covered

sizes: .venv/installed  ## lines, choices and public names, room by room
	$(BIN)/python -m benchmarks.sizes

recorded: .venv/installed  ## the numbers of the recording in benchmarks/recorded, computed again
	$(BIN)/python -m benchmarks.recorded compare benchmarks/recorded/0.2.npz

golden: .venv/installed  ## parity with the reference numbers (OPENEDM_GOLDEN names their folder)
	$(PYTEST) -m golden

lint: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: .venv/installed
	$(BIN)/mypy

imports: .venv/installed  ## a room imports only from lower floors
	$(BIN)/lint-imports

bench: .venv/installed  ## training and sampling speed on this machine
	$(BIN)/python -m benchmarks.speed

# Peers want old versions of things, and k-diffusion wants its training side: without dependencies, all of them pinned.
benchmarks/.venv/installed: pyproject.toml constraints.txt benchmarks/peers/requirements.txt
	test -x $(PEERS)/python || $(PYTHON) -m venv benchmarks/.venv
	$(PEERS)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	$(PEERS)/python -m pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/peers/requirements.txt
	touch $@

bench-solvers: benchmarks/.venv/installed  ## solvers compared with those of peer libraries, in an environment of their own
	OMP_NUM_THREADS=1 $(PEERS)/python -m benchmarks.solvers --fit --out benchmarks/results/solvers.json \
	  --figure benchmarks/results/solvers.png

benchmarks/.venv-sbi/installed: benchmarks/peers/requirements-sbi.txt
	test -x benchmarks/.venv-sbi/bin/python || $(PYTHON) -m venv benchmarks/.venv-sbi
	benchmarks/.venv-sbi/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

benchmarks/.venv-gensbi/installed: benchmarks/peers/requirements-gensbi.txt
	test -x benchmarks/.venv-gensbi/bin/python || $(PYTHON312) -m venv benchmarks/.venv-gensbi || \
	  { echo 'GenSBI needs Python 3.12 or later: make bench-inference PYTHON312=WHERE IT IS'; exit 1; }
	benchmarks/.venv-gensbi/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

# Hours: a run that is ended goes on where it was. ARGUMENTS='--tasks two_moons --methods openedm npe' does less.
bench-inference: .venv/installed benchmarks/.venv-sbi/installed benchmarks/.venv-gensbi/installed  ## posteriors, with peers
	$(BIN)/python -m benchmarks.inference $(ARGUMENTS)

.venv/installed-docs: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[docs]'
	touch $@

docs: .venv/installed-docs  ## the site in docs/_build/html; its tutorials are executed, and warnings are errors
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -q -W --keep-going docs docs/_build/html

site: .venv/installed-docs  ## the pages of the site, and the API from docstrings, without executing tutorials: half a minute
	OPENEDM_DOCS_EXECUTE=off OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -q -W --keep-going docs docs/_build/site

docs-check: docs  ## the site, and every command and block of Python of README and docs: many minutes
	OMP_NUM_THREADS=1 $(BIN)/python docs/follow.py

# The browser is a Chromium or Chrome on the path, or the one that OPENEDM_BROWSER names: none is downloaded.
.venv/installed-browser: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[browser]'
	touch $@

app-check: .venv/installed-browser  ## openedm explore in a headless browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -o addopts=--import-mode=importlib tests/browser/explore.py

clean:
	rm -rf docs/_build docs/generated .venv benchmarks/.venv benchmarks/.venv-* benchmarks/.cache .pytest_cache .hypothesis .mypy_cache .ruff_cache .coverage
