# Every target sets up what it needs in .venv; nothing has to be installed first but Python and git.
# A stamp says what .venv holds, so that it is installed anew only when pyproject.toml or constraints.txt changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CREATED := $(VENV)/.created
RUNTIME := $(VENV)/.installed-runtime
DEVELOPMENT := $(VENV)/.installed-development
# -qq still shows errors.
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-slow coverage lint bench clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(RUNTIME) ## Show distilld at work on a small lakehouse of its own
	@$(BIN)/distilld demo

test: $(DEVELOPMENT) ## Run the tests but the slow ones
	@$(BIN)/python -m pytest -m 'not slow'

test-slow: $(DEVELOPMENT) ## Run the slow tests
	@$(BIN)/python -m pytest -m slow

coverage: $(DEVELOPMENT) ## Run the tests and show which branches of the pure core they miss
	@$(BIN)/python -m pytest -m 'not slow' --cov --cov-report=term-missing

lint: $(DEVELOPMENT) ## Check style, format, types and layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(DEVELOPMENT) ## Measure; see docs for what the figures mean
	@$(BIN)/python -m tests.bench

clean: ## Remove what the other targets made
	rm -rf $(VENV) build dist *.egg-info .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find distilld tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(CREATED):
	@command -v $(PYTHON) >/dev/null || { \
		echo "distilld needs Python 3.11 or newer; there is no '$(PYTHON)' here: try 'make PYTHON=python3.11'" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "distilld needs Python 3.11 or newer; '$(PYTHON)' is older: try 'make PYTHON=python3.11'" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(RUNTIME): pyproject.toml constraints.txt $(CREATED)
	@echo "Installing distilld into $(VENV) ..."
	@$(PIP_INSTALL) -e .
	@touch $@

$(DEVELOPMENT): pyproject.toml constraints.txt $(CREATED)
	@echo "Installing distilld and its development tools into $(VENV) ..."
	@$(PIP_INSTALL) -e '.[test,dev]'
	@touch $(RUNTIME) $@
