# `make` prints this list. Every target first installs the packages that it needs.
.DEFAULT_GOAL := help
.PHONY: help install up down status demo check test journeys faults image bench
.PHONY: nightly variants loops promises containers cluster kafka kubernetes
.PHONY: docs wheel
.PHONY: extras spark
.PHONY: style targets audit lock environment python tools jdk nginx chromium
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/gyre.stamp
DEV := .venv/dev.stamp
KSERVE := .venv-kserve/gyre.stamp
DBT := .venv-dbt/gyre.stamp
FAKESNOW := .venv-fakesnow/gyre.stamp
KUBERNETES := .venv-kubernetes/gyre.stamp
SITE := .venv-docs/gyre.stamp
# What a target has added to the environment stays in it, at the versions of its lock file.
added = $(if $(wildcard .venv/lib/*/site-packages/$(1)), $(2).lock)
LOCKS := requirements.lock$(call added,boto3,extras)$(call added,pytest,dev)$(call added,pyspark,spark)
export VIRTUAL_ENV := $(CURDIR)/.venv
# Compiling all that is imported takes each process longer than the import.
unexport PYTHONDONTWRITEBYTECODE
export UV_CACHE_DIR ?= $(CURDIR)/.uv-cache
# The system's certificates, as pip has them.
export UV_SYSTEM_CERTS ?= true
# Coverage of promotion, decisions, gates and look-up: in CI alone, as tracing makes a test take longer.
COVERAGE := $(if $(CI),--cov)
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
APT := $(SUDO) apt-get

help: ## Print this list.
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

install: python $(STAMP) ## Install what a stack needs to run; nothing is started.

up: install ## From nothing to a served prediction; again: nothing changes.
	@$(BIN)/gyre up

down: ## End every process of this stack.
	@test ! -x $(BIN)/gyre || $(BIN)/gyre down

status: ## What is up, what serves, how fresh, memory.
	@test -x $(BIN)/gyre || { echo 'nothing is installed yet: make up'; exit 1; }
	@$(BIN)/gyre status

demo: install ## The loop closing on real history, on a stack of its own.
	@$(BIN)/gyre demo

check: environment ## Lint, format, types, density, imports of packages, the target of each test, generated pages.
	@# Tests are collected while types are checked.
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target style targets

style:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.density
	$(BIN)/python -m docs.generate --check

targets:
	$(BIN)/python -m tests.targets

test: environment ## The tests of every package, with the real tools, and a loop in small: six minutes.
	@# One more than there are cores: tests wait for processes a fifth of their time.
	$(BIN)/pytest --target test $(COVERAGE) \
	  --numprocesses=$$(($$(nproc) + 1)) --maxprocesses=4 --no-loadscope-reorder

JOURNEYS := environment jdk spark nginx chromium $(KUBERNETES)
journeys: $(JOURNEYS) ## Whole use cases, long stories, pages in Chromium, and what needs Java, nginx or kubectl.
	@# Two more than there are cores: these wait longer for intervals of programs.
	$(BIN)/pytest --target journeys \
	  --numprocesses=$$(($$(nproc) + 2)) --maxprocesses=6 --no-loadscope-reorder

faults: environment nginx ## The whole loop, then the faults of a bad day, made for real.
	$(BIN)/pytest --target faults tests/faults tests/loop --numprocesses=2 --no-loadscope-reorder

image: environment tools ## Build the image of serving, start it, ask it.
	$(SUDO) env BASE=$(BASE) $(BIN)/pytest --target image tests/containers

containers: environment tools ## Build every image and run them, as root; podman and buildah are installed if missing.
	$(SUDO) env BASE=$(BASE) $(BIN)/pytest --target containers tests/containers --timeout=7200

# A network of its own for driver, master and S3, which goes with pytest, as all processes do.
HOST := unshare --net --mount --pid --fork --kill-child --mount-proc
cluster: environment spark ## Spark's master and two workers on hosts of their own, tables on S3, as root.
	$(SUDO) $$($(SUDO) $(HOST) true && echo $(HOST)) $(BIN)/pytest --target cluster tests/cluster \
	  -W ignore::pytest.PytestUnraisableExceptionWarning

kafka: environment ## Kafka's brokers that are killed, and a schema registry, as root; Maven brings them into .venv-kafka.
	@$(BIN)/python -m tests.support.stores.jars
	$(SUDO) $(BIN)/pytest --target kafka tests/kafka

# What sudo would not hand over.
HANDED := env BASE=$(BASE) $(foreach name,AIRFLOW_CHART GOPROXY,$(if $($(name)),$(name)=$($(name))))
kubernetes: environment tools $(KUBERNETES) ## A Kubernetes of one node that runs deploy/kubernetes, as root; the first time it is built (Go).
	@$(SUDO) $(HANDED) $(BIN)/python -m tests.support.kubernetes.programs
	$(SUDO) $(HANDED) tests/support/kubernetes/run.sh --target kubernetes tests/kubernetes/test_api.py
	@$(SUDO) $(HANDED) $(BIN)/python -m tests.support.kubernetes.images
	$(SUDO) $(HANDED) tests/support/kubernetes/run.sh --target kubernetes tests/kubernetes/test_node.py
	@cat .venv-cluster/measured.txt

nightly: environment ## What .ci/run leaves out, in parts of at most an hour; again: what has not passed yet (PARTS="kafka cluster": these).
	@$(BIN)/python -m tests.nightly $(PARTS)

NIGHT := $(JOURNEYS) $(KSERVE) $(DBT) $(FAKESNOW) .venv-dynamodb/gyre.stamp
variants: $(NIGHT) ## Of the night: variants and long tests of `test` and `journeys`, clients of other projects.
	$(BIN)/pytest --target variants --numprocesses=2 --no-loadscope-reorder

loops: $(NIGHT) ## Of the night: the demos, PostgreSQL, real rollouts, sixty promotions.
	$(BIN)/pytest --target loops tests/faults tests/loop --numprocesses=2 --no-loadscope-reorder

promises: $(JOURNEYS) ## Of the night: promises in seconds, one test at a time, on a quiet machine.
	TEST_TIMES=promised $(BIN)/pytest --target promises

tools:
	@missing=; for each in podman buildah runc debootstrap iptables; do \
	  $(SUDO) sh -c "command -v $$each" > /dev/null || missing="$$missing $$each"; done; \
	test -z "$$missing" || { $(APT) update --quiet=2 && $(APT) install --yes --quiet=2 \
	  --no-install-recommends $$missing netavark aardvark-dns debian-archive-keyring; } \
	|| { echo "install$$missing, then again"; exit 1; }

bench: environment ## Measure what the project promises.
	$(BIN)/python -m benchmarks

wheel: environment ## Build the wheel into dist/, to be installed with constraints.txt.
	@rm -rf dist; $(BIN)/uv build --quiet --no-build-isolation --out-dir dist && cp constraints.txt dist && ls dist

docs: environment $(SITE) ## Write docs/reference/ from the code, build site/html/, check every link.
	@$(BIN)/python -m docs.generate
	@$(BIN)/python -m docs.site

# Environments of their own: what the checks and the stack run on stays as it is.
$(SITE): docs/requirements.lock
$(KSERVE): tests/kserve.lock
$(DBT): tests/dbt.lock
$(FAKESNOW): tests/fakesnow.lock
$(KUBERNETES): tests/kubernetes.lock
$(SITE) $(KSERVE) $(DBT) $(FAKESNOW) $(KUBERNETES): | environment
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(@D)
	@$(BIN)/uv pip sync --quiet --python $(@D) --require-hashes $<
	@touch $@

# That of the tests, with an older boto3.
.venv-dynamodb/gyre.stamp: requirements.lock extras.lock dev.lock deploy/dynamodb.lock pyproject.toml | environment
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(@D)
	@for lock in requirements.lock extras.lock dev.lock deploy/dynamodb.lock; do \
	  $(BIN)/uv pip install --quiet --python $(@D) --no-deps --require-hashes --requirements $$lock || exit 1; done
	@$(BIN)/uv pip install --quiet --python $(@D) --no-deps --no-build-isolation --editable .
	@touch $@

extras: install ## Add clients of PostgreSQL, MySQL, Kafka, buckets and Iceberg, XGBoost and LightGBM (extras.lock, 150 MB).
	@$(BIN)/uv pip install --quiet --require-hashes --requirements extras.lock

spark: install ## Add PySpark (spark.lock, 400 MB), and Java if there is none, for GYRE_ENGINE=spark.
	@command -v java > /dev/null || { $(APT) update --quiet=2 \
	  && $(APT) install --yes --no-install-recommends openjdk-17-jre-headless; } \
	  || { echo 'no Java: install a JRE of version 17 or 21, then again: make spark'; exit 1; }
	@$(BIN)/uv pip install --quiet --require-hashes --requirements spark.lock

chromium: # For tests that look at pages; docs/browser.py takes each of these names.
	@for each in chromium chromium-browser google-chrome; do ! command -v $$each > /dev/null || exit 0; done; \
	  $(APT) update --quiet=2 && $(APT) install --yes --quiet=2 --no-install-recommends chromium

jdk: # For tests of its client, and of curl.
	@command -v javac > /dev/null && command -v curl > /dev/null || { $(APT) update --quiet=2 \
	  && $(APT) install --yes --quiet=2 --no-install-recommends openjdk-17-jdk-headless curl; }

nginx: # For tests of an MLflow behind it; RUNLEVEL=1 has Debian start no service.
	@PATH=$$PATH:/usr/sbin; command -v nginx > /dev/null || { $(APT) update --quiet=2 \
	  && $(SUDO) env RUNLEVEL=1 apt-get install --yes --no-install-recommends nginx-light; }

audit: install ## List the known vulnerabilities of the lock files, asked of PyPI, and of the server of Redis.
	@$(BIN)/python -m stack.audit || failed=1; for lock in requirements.lock extras.lock dev.lock spark.lock; do \
	  echo $$lock; $(BIN)/uv tool run pip-audit==2.10.1 --strict --disable-pip --require-hashes --requirement $$lock || failed=1; \
	  done; exit $${failed:-0}

LOCK := uv pip compile --generate-hashes --no-emit-index-url --no-emit-find-links --universal \
  --python-version 3.11 --upgrade --quiet
# The requirements of extras of pyproject.toml, without Gyre's own.
extras = $(BIN)/python -c 'import sys, tomllib; \
  extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]; \
  print(*(each for name in sys.argv[1:] for each in extras[name]), sep="\n")' $(1)
DEPLOYED := --extra boosters --extra postgres --extra s3 --extra mysql --extra iceberg --extra kafka --extra celery --extra kubernetes
lock: environment ## Resolve pyproject.toml anew; write every lock file.
	$(BIN)/$(LOCK) pyproject.toml --group install --excludes excluded.txt -o requirements.lock
	$(call extras,boosters postgres s3 mysql iceberg kafka) | $(BIN)/$(LOCK) - --constraints requirements.lock -o extras.lock
	$(BIN)/$(LOCK) --group dev --constraints requirements.lock --constraints extras.lock -o dev.lock
	$(call extras,spark) | $(BIN)/$(LOCK) - --constraints requirements.lock -o spark.lock
	$(BIN)/$(LOCK) --group docs -o docs/requirements.lock
	$(BIN)/$(LOCK) --group kserve -o tests/kserve.lock
	$(BIN)/$(LOCK) --group fakesnow -o tests/fakesnow.lock
	$(BIN)/$(LOCK) --no-deps --group kubernetes -o tests/kubernetes.lock
	@# dbt writes the file of DuckDB that Gyre reads, and Feast the registry.
	sed -En 's/^(duckdb|feast)(\[.*\])?(==[^ ]+) .*/\1\3/p' requirements.lock | $(BIN)/$(LOCK) - --group dbt -o tests/dbt.lock
	@# With the versions of requirements.lock but for boto3, of which it wants an older one.
	sed -n 's/^\([a-z0-9].*==.*[^ ]\) \\$$/\1/p' requirements.lock extras.lock dev.lock | grep -v ^boto > .venv/constraints
	$(call extras,dynamodb) | $(BIN)/$(LOCK) - --constraints .venv/constraints -o deploy/dynamodb.lock
	$(BIN)/$(LOCK) --group serving --constraints requirements.lock --constraints extras.lock -o deploy/serving.lock
	$(BIN)/$(LOCK) pyproject.toml $(DEPLOYED) --constraints requirements.lock --constraints extras.lock -o deploy/gyre.lock
	@# With the packages of excluded.txt too, which pip installs.
	$(BIN)/$(subst --generate-hashes,--no-annotate,$(LOCK)) pyproject.toml $(DEPLOYED) --extra spark \
	  --constraints requirements.lock --constraints deploy/gyre.lock --constraints spark.lock -o constraints.txt

environment: install $(DEV)

$(DEV): dev.lock extras.lock $(STAMP)
	@echo '  packages of dev.lock extras.lock'
	@$(BIN)/uv pip install --quiet --require-hashes --requirements dev.lock --requirements extras.lock
	@touch $@

# What is installed is exactly the lock files, each file checked against its hash.
$(STAMP): $(LOCKS) pyproject.toml | python
	@test -x $(BIN)/uv || { echo '  python environment, and uv by its hash'; \
	  $(PYTHON) -m venv --clear .venv && sed -n '/^uv==/,/# via/p' requirements.lock \
	  | $(BIN)/python -m pip install --quiet --require-hashes --requirement /dev/stdin \
	  && $(BIN)/uv pip uninstall --quiet pip; }
	@echo '  packages of $(LOCKS), downloads included'
	@$(BIN)/uv pip sync --require-hashes $(LOCKS)
	@$(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# Python of a version that everything here runs on, and 3 GB for an environment not made yet; that
# of another Python is made anew.
python:
	@$(PYTHON) -c 'import sys; found = sys.version.split()[0]; \
	  needed = "Python 3.11 to 3.13 is needed, this is " + found + ": make up PYTHON=/path/to/python3.11"; \
	  sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else needed)'
	@test ! -e .venv || test "$$($(BIN)/python -V 2>&1)" = "$$($(PYTHON) -V)" || rm -rf .venv
	@test -e $(STAMP) || $(PYTHON) -c 'import shutil, sys; free = shutil.disk_usage(".").free / 1e9; \
	  needed = f"$(CURDIR) has {free:.1f} GB free, 3.0 GB are needed: free some, or clone elsewhere"; \
	  sys.exit(0 if free > 3 else needed)'
