# `make` lists the targets. Each one first builds .venv when it is missing or older than what it was built from.

PYTHON ?= python3
PYTEST_ARGS ?=
MINUTES ?= 60
SEED ?= 0
ONLY ?=
SOAK_ARGS ?=
SHARED ?=
JOBS ?= 2
# Not empty: a grid that was not begun here begins with the committed results, and trains what they lack.
GO_ON ?=

GRIDS := cpu_x4 cpu_x4_few branches_x4 students_x2 students_x3 students_x4

VENV := .venv
RUN := $(VENV)/bin/python -m
# Written last: an environment without it was never finished.
INSTALLED := $(VENV)/.installed
PIP_INSTALL := $(RUN) pip install --disable-pip-version-check -q --no-compile -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test quick soak lint format tables site site-serve gpu-bundle clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo "PYTHON=python3.12 builds .venv with another interpreter; PYTEST_ARGS='-k wavelet' goes to pytest."

demo: $(INSTALLED) ## distil a small student on the CPU and print its table
	$(VENV)/bin/mtkd demo

test: $(INSTALLED) ## run the whole test suite
	$(RUN) pytest -q -n auto --durations=10 $(PYTEST_ARGS)

quick: $(INSTALLED) ## run the tests that are not marked slow, in a minute or two
	$(RUN) pytest -q -n auto -m "not slow" $(PYTEST_ARGS)

soak: $(INSTALLED) ## attack with damaged files, wrong commands and kills: MINUTES=60 SEED=0 ONLY='images kills'
	$(RUN) tests.hostile.soak --minutes $(MINUTES) --seed $(SEED) --only $(ONLY) $(SOAK_ARGS)

lint: $(INSTALLED) ## ruff (rules and layout) and pyright
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) pyright

format: $(INSTALLED) ## let ruff rewrite what it can
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

tables: $(INSTALLED) ## make the committed tables again: SHARED=FOLDER with the images, answers and weights, JOBS=2, BENCH_ARGS; GO_ON=1 trains what they lack
	@test -n "$(SHARED)" || { echo "make tables SHARED=FOLDER: benchmarks/grid_data.py says what FOLDER holds" >&2; exit 1; }
	$(VENV)/bin/python benchmarks/grid_data.py $(SHARED) .cache/grid/data
	$(if $(GO_ON),for grid in $(GRIDS) edsr_m_x4 demo_x2; do test -e .cache/grid/$$grid || cp -r benchmarks/results/$$grid .cache/grid/ || exit 1; done)
	for grid in $(GRIDS); do $(VENV)/bin/mtkd bench benchmarks/$$grid.yml --out .cache/grid/$$grid --jobs $(JOBS) \
	  $(BENCH_ARGS) --keep benchmarks/results/$$grid || exit 1; done
	if $(VENV)/bin/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then \
	  $(VENV)/bin/mtkd bench benchmarks/edsr_m_x4.yml --out .cache/grid/edsr_m_x4 --jobs $(JOBS) $(BENCH_ARGS) --keep benchmarks/results/edsr_m_x4; \
	else echo "edsr_m_x4 needs a GPU: its kept results stay"; fi
	$(VENV)/bin/mtkd bench benchmarks/demo_x2.yml --out .cache/grid/demo_x2 --jobs $(JOBS) --keep benchmarks/results/demo_x2
	$(VENV)/bin/python benchmarks/readme_tables.py
	$(VENV)/bin/python benchmarks/readme_figure.py

site: $(INSTALLED) ## build the pages of docs/ as a site in .cache/site
	$(RUN) mkdocs build --strict -q

site-serve: $(INSTALLED) ## serve that site, and build it again when a page changes
	$(RUN) mkdocs serve

gpu-bundle: $(INSTALLED) ## fill .gpu/ with what benchmarks/gpu.py needs on a GPU machine without an index
	$(VENV)/bin/python benchmarks/gpu_bundle.py $(BUNDLE_ARGS)

clean: ## remove .venv and caches; experiments, results and data stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find mtkd tests benchmarks datasets -name __pycache__ -type d -prune -exec rm -rf {} +

# A finished environment is updated in place; an interrupted one is emptied, because pip takes a half-copied
# package for an installed one. torch comes first and build isolation is off, or building basicsr would fetch a
# second torch. pip compiles on one core: all of them do it at the end.
$(INSTALLED): setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || { echo \
	"The tested versions need Python 3.11 or 3.12, and $(PYTHON) is `$(PYTHON) -V 2>&1`. Name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "Building $(VENV): about 6 GB, a few minutes."
	test -e $@ || $(PYTHON) -m venv --clear $(VENV)
	rm -f $@
	$(PIP_INSTALL) torch torchvision numpy cython wheel setuptools
	$(PIP_INSTALL) --no-build-isolation -e ".[dev,spandrel,demo]"
	$(RUN) compileall -qq -j 0 $(VENV)/lib || true # some packages carry files of another Python
	touch $@
