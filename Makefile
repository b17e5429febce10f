# `make train` and `make test` set up what they need, in .venv, and run. PYTHON chooses the interpreter: 3.11 or later.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
READY   = $(VENV)/.ready
PEERS   = $(VENV)-bench/.ready
SITE    = $(VENV)/.docs

.PHONY: help setup train test bench race docs clean
help:       ## list what there is to make
	@grep -E "^[a-z]+: .*##" $(MAKEFILE_LIST) | sed "s/:.*##/ -/"

setup: $(READY)  ## a virtual environment with miniai, its dependencies pinned by constraints.txt

# torch's builds for GPUs bring their own Triton. Others get one for the tests, which run its kernels without a GPU.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "miniai needs Python 3.11 or later; $(PYTHON) is older. Try: make PYTHON=python3.11 …"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || { echo "No virtual environment could be made. On Debian: apt-get install python3-venv"; rm -rf $(VENV); exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(BIN)/python -c 'import triton' 2>/dev/null || [ "$$(uname -s)" != Linux ] || $(BIN)/pip install --quiet --disable-pip-version-check triton==3.7.1
	@touch $@

train: $(READY)  ## train Fashion-MNIST: a bar, a table, and a run folder in runs/
	$(BIN)/miniai train $(ARGS)

test: $(READY)  ## all tests but the slow ones' long versions
	$(BIN)/python -m pytest -q -n logical --maxprocesses 4 --dist worksteal --cov --cov-report=term:skip-covered --cov-fail-under=95 $(ARGS)

docs: $(SITE)  ## the documentation site, into docs/_build/: its pages run, which takes a few minutes
	$(BIN)/python -m sphinx -q -W --keep-going docs docs/_build
	@echo "open docs/_build/index.html"

$(SITE): $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

bench: $(READY) $(PEERS)  ## all benchmarks, into bench/results/
	$(VENV)-bench/bin/python bench/loop_overhead.py
	for b in import_time optim_step activation_stats data profile_cost scaling epoch; do $(BIN)/python bench/$$b.py || exit 1; done

$(PEERS): bench/requirements.txt constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)-bench
	$(VENV)-bench/bin/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(VENV)-bench/bin/pip install --quiet --disable-pip-version-check --no-deps torchvision==0.28.0
	$(VENV)-bench/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -r bench/requirements.txt -e .
	@touch $@

race: $(READY)  ## all optimizers against AdamW on two small tasks, a few minutes; bench/league.py runs the whole league
	$(BIN)/python bench/league.py --quick

clean:      ## remove the virtual environment and caches
	rm -rf $(VENV) $(VENV)-bench .pytest_cache .hypothesis .ruff_cache .coverage
