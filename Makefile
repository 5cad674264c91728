# `make` prints this list. Every target makes the environment first where it needs it.
.DEFAULT_GOAL := help
.PHONY: help up down status demo replay check test faults nightly bench spark lock environment python
PYTHON ?= python3
BIN := .venv/bin
APT := $(if $(filter 0,$(shell id -u)),,sudo) apt-get

help: ## Print this list.
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

up: python ## From nothing to a served prediction; again: nothing changes.
	@$(PYTHON) -m stack.bootstrap --start
	@$(BIN)/gyre up

down: ## End every process of this stack.
	@test ! -x $(BIN)/gyre || $(BIN)/gyre down

status: ## What is up, what serves, how fresh, memory.
	@test -x $(BIN)/gyre || { echo 'nothing is installed yet: make up'; exit 1; }
	@$(BIN)/gyre status

demo: environment ## The loop closing on real history, on a stack of its own.
	@$(BIN)/gyre demo

replay: environment ## A year of the loop in minutes, as an Airflow backfill; its stack stays up to look at.
	@$(BIN)/gyre replay --keep

check: environment ## Lint, format, types, and which room may import what.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: spark ## All tests but those of the whole loop and of the faults.
	@# One more than there are cores: tests wait for processes a fifth of their time.
	$(BIN)/pytest -m "not nightly" --ignore=tests/faults --ignore=tests/loop \
	  --numprocesses=$$(($$(nproc) + 1)) --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

faults: environment ## The whole loop, then the faults of a bad day, made for real.
	$(BIN)/pytest -m "not nightly" tests/loop tests/faults

nightly: spark ## What `make test` and `make faults` leave out: Spark variants, seeds, faults of the whole loop.
	$(BIN)/pytest -m nightly

bench: environment ## Measure what the project promises.
	$(BIN)/python -m benchmarks

spark: python ## Add PySpark (spark.lock, 400 MB), and Java if there is none, for GYRE_ENGINE=spark.
	@command -v java > /dev/null || { $(APT) update --quiet=2 \
	  && $(APT) install --yes --no-install-recommends openjdk-17-jre-headless; } \
	  || { echo 'no Java: install a JRE of version 17 or 21, then again: make spark'; exit 1; }
	@$(PYTHON) -m stack.bootstrap --spark

lock: environment ## Resolve pyproject.toml anew; write requirements.lock, bootstrap.lock and spark.lock.
	$(BIN)/uv pip compile pyproject.toml --extra dev --generate-hashes --no-emit-index-url \
	  --no-emit-find-links --universal --python-version 3.11 --upgrade --quiet -o requirements.lock
	@{ echo '# From requirements.lock (`make lock`).'; \
	  sed -n '/^uv==/,/# via/{/# via/!p}' requirements.lock; } > bootstrap.lock
	$(BIN)/uv pip compile --group spark --constraints requirements.lock --generate-hashes \
	  --no-emit-index-url --no-emit-find-links --universal --python-version 3.11 --upgrade --quiet \
	  -o spark.lock

environment: python
	@$(PYTHON) -m stack.bootstrap

# One that is too old for the project cannot read stack/preflight.py, which says the same.
python:
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(0 if sys.version_info >= (3, 11) \
	  else "Python 3.11 to 3.13 is needed, this is " + v + ": make up PYTHON=/path/to/python3.11")'
