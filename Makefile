# `make run` needs nothing but python3 (3.11 or later) and make; everything else is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two processes: the tests wait for a real Postgres more than they compute.
PYTEST_ARGS ?= -n 2 --dist loadgroup

.DEFAULT_GOAL := help
.PHONY: help run test chaos check clients bench lock clean
.DELETE_ON_ERROR:

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(VENV)/.installed ## Start the service (PORT, DATABASE_URL and so on: see .env.example)
	@exec $(BIN)/agent-runner serve

test: $(VENV)/.installed-dev ## Run the tests; choose some with PYTEST_ARGS="tests/unit -k name"
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

# The sizes of each scenario suit a machine that does nothing else meanwhile: one process.
CHAOS_SEED ?= $(shell date +%s)
chaos: $(VENV)/.installed-dev ## All scenarios of failure in full size (CHAOS_SEED=1, CHAOS_ARGS="-k partition")
	@echo "seed $(CHAOS_SEED)"
	@$(BIN)/python -m pytest tests/chaos tests/integration/test_store_machine.py tests/unit/engine/test_simulation.py \
		--chaos-full --chaos-seed=$(CHAOS_SEED) -o faulthandler_timeout=1800 $(CHAOS_ARGS)

check: $(VENV)/.installed-dev ## Lint, formatting, types, import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright --pythonpath $(BIN)/python
	@$(BIN)/lint-imports

clients: $(VENV)/.installed-dev ## Generate API clients from the OpenAPI document and check them (needs npm)
	@$(BIN)/python tests/clients/generate.py

bench: $(VENV)/.installed ## Measure CPU per run, throughput, latency (BENCH_ARGS="--only one-step")
	@$(BIN)/python -m benchmarks $(BENCH_ARGS)

# The hashes are those of the package index itself, whatever mirror or folder this machine installs from.
COMPILE := env -u PIP_FIND_LINKS -u PIP_EXTRA_INDEX_URL -u UV_FIND_LINKS -u UV_EXTRA_INDEX_URL \
	$(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes \
	--no-header --no-annotate --no-emit-index-url --no-emit-find-links --quiet $(LOCK_ARGS)
lock: $(VENV)/.created ## Lock the dependencies again (LOCK_ARGS=--upgrade takes newer ones)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(COMPILE) --group dev --output-file requirements-dev.lock
	@$(COMPILE) --group build --constraints requirements-dev.lock --output-file requirements.lock

clean: ## Remove .venv and caches; data in .data stays
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "agent-runner needs Python 3.11 or later; '$(PYTHON)' is not. Try: make run PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "$(PYTHON) has no venv module. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: requirements.lock pyproject.toml | $(VENV)/.created
	@echo "Installing into $(VENV), once ..."
	@$(INSTALL) --require-hashes -r requirements.lock
	@$(INSTALL) --no-build-isolation --no-deps --editable .
	@touch $@

$(VENV)/.installed-dev: requirements-dev.lock $(VENV)/.installed
	@echo "Installing the development tools, once ..."
	@$(INSTALL) --require-hashes -r requirements-dev.lock
	@touch $@
