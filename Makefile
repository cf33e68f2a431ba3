# adcore: two commands matter, `make reproduce` and `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Exact versions; a file with another digest than the listed one is refused, also of the packages that build adcore.
# Compiled once, so that not every notebook and test compiles torch at its start where Python may write no bytecode.
INSTALL := $(BIN)/python -m uv pip install --quiet --python $(BIN)/python --constraint .ci/hashes.txt \
  --build-constraint .ci/hashes.txt --compile-bytecode --editable
CORES ?= all
GRID ?= quick

.DEFAULT_GOAL := help
.PHONY: help setup reproduce test test-faults test-fuzz test-slurm test-browser lint lab notebooks slides report bench lock clean

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

setup: $(VENV)/.ready  ## the environment alone, in .venv

$(VENV)/.ready: pyproject.toml .ci/hashes.txt .ci/uv.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "adcore needs Python 3.10 to 3.13: make PYTHON=python3.12 ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement .ci/uv.txt
	$(INSTALL) '.[all]'
	@touch $@

reproduce: setup  ## run every notebook (GRID=quick), write report/index.html
	@$(BIN)/adcore reproduce --grid $(GRID) --cores $(CORES)

test: setup lint  ## unit tests, the examples in docstrings, then nbval on every notebook
	$(BIN)/python -m pytest tests -n 2 --dist loadfile --max-worker-restart 0
	$(BIN)/python -m pytest --doctest-modules adcore --ignore adcore/kernels/triton
	OMP_NUM_THREADS=1 ADCORE_PROGRESS=0 $(BIN)/python -m pytest --nbval-lax --nbval-current-env --nbval-cell-timeout=300 \
	  -n 2 --dist loadfile --max-worker-restart 0 notebooks

test-faults: setup  ## kill training, evaluation, papermill and Snakemake 50 times
	ADCORE_KILLS=50 $(BIN)/python -m pytest tests/house/test_faults.py

test-fuzz: setup  ## every reader under 10,000 mutated files
	ADCORE_FUZZ=10000 $(BIN)/python -m pytest tests/house/test_fuzz.py -n 2

test-slurm: setup  ## a grid on a real SLURM cluster of one node, with kills (root, Debian)
	$(INSTALL) '.[all,slurm]'
	OMP_NUM_THREADS=1 $(BIN)/python tests/slurm/exercise.py

test-browser: setup  ## notebooks in JupyterLab in a headless Chromium, with pictures in runs/browser (Debian: chromium)
	$(INSTALL) '.[all,browser]'
	ADCORE_BROWSER=runs/browser $(BIN)/python -m pytest tests/browser -v -rs

lint: setup  ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/mypy

lab: setup  ## JupyterLab at the first notebook
	$(BIN)/jupyter lab notebooks/00_start_here.ipynb

notebooks: setup  ## execute every notebook in place, so that the committed outputs are today's
	$(BIN)/adcore refresh

slides: setup  ## lecture slides of every notebook, in slides/ (opening them needs a network, for reveal.js and MathJax)
	cd notebooks && for name in *.ipynb */*.ipynb; do \
	  ../$(BIN)/jupyter nbconvert --log-level WARN --to slides --no-prompt --SlidesExporter.reveal_scroll=True \
	    --SlidesExporter.reveal_width=1180 --SlidesExporter.reveal_height=720 \
	    --output-dir "../slides/$$(dirname $$name)" "$$name" || exit 1; done

report: setup  ## write report/index.html from what has been run
	@$(BIN)/adcore report

bench: setup  ## adcore against its peers, into benchmarks/results.csv
	$(INSTALL) '.[all,bench]'
	$(BIN)/adcore bench

LOCK := $(BIN)/python -m uv pip compile --universal --python-version 3.10 --upgrade --generate-hashes --no-header --no-annotate \
  --no-emit-index-url --quiet

lock: setup  ## choose exact versions anew, for every supported Python
	$(LOCK) pyproject.toml --all-extras --output-file .ci/hashes.new
	(echo '# Exact versions for every supported Python; made by `make lock`.'; \
	  sed -n 's/^\([a-z].*[^ ]\) *\\$$/\1/p' .ci/hashes.new) > constraints.txt
	(echo '# constraints.txt with the digest of each file that may be installed; made by `make lock`.'; \
	  cat .ci/hashes.new) > .ci/hashes.txt
	(echo '# The installer itself; made by `make lock`.'; echo uv | $(LOCK) -) > .ci/uv.txt
	rm .ci/hashes.new

clean:  ## remove the environment, the report and tools' caches; results in runs/ stay
	rm -rf $(VENV) report slides .snakemake .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
