# Every target sets up what it needs first: a virtual environment in .venv, the package, the model.
# The package is installed again when pyproject.toml or the lock has changed. The model lies in the user's cache,
# outside of this folder, so its own command is asked each time whether it is there and whole.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TEST ?= tests
UPGRADE ?= --upgrade
LOCK := requirements-dev.txt
PIP := $(BIN)/pip --quiet --disable-pip-version-check
UV := $(BIN)/uv --quiet
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder
# Waits of a slow network, in seconds.
export UV_HTTP_TIMEOUT ?= 180
# Bytecode is kept whatever the environment says: without, each process of the tests compiles anew.
unexport PYTHONDONTWRITEBYTECODE

# Of each package the locked version, and no other file than those whose hashes are in the lock. uv asks the
# public index; where only pip is told of another one, pip takes minutes for what takes uv seconds.
define install
$(UV) pip install --python $(BIN)/python --constraints $(LOCK) --build-constraints $(LOCK) --editable '.[$(1)]' || { \
	  echo "uv cannot install it (see above); now pip tries, for some minutes"; \
	  $(PIP) install --require-hashes --no-deps --requirement $(LOCK) && \
	  $(PIP) install --no-build-isolation --no-deps --editable .; }
endef

.DEFAULT_GOAL := help
.PHONY: help demo serve test test-all lint format docs lock audit clean

help:  ## Show this text
	@echo "prefect-mipro: prompt optimization as a Prefect flow. Usage: make TARGET"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "Python 3.11 or newer is needed; choose one with: make demo PYTHON=python3.12"
	@echo "One test file or folder: make test TEST=tests/client"

demo: $(VENV)/.embedded  ## Optimize a prompt with the embedded model: the whole loop on this machine, no key
	$(BIN)/prefect-mipro demo

serve: $(VENV)/.embedded  ## Run the optimization server by itself
	$(BIN)/prefect-mipro model install
	$(BIN)/python -m prefect_mipro.server

test: lint  ## Check style, types and import rules, then run the tests that do not take minutes by nature
	$(BIN)/prefect-mipro model install
	$(PYTEST) $(if $(filter tests,$(TEST)),-m "not slow") $(TEST)

test-all: test  ## As `make test`, then the slow tests: deployments, kills, several servers, builds
	$(PYTEST) -m slow tests

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

lock: $(BIN)/uv  ## Write the newest versions that fit pyproject.toml, and their hashes, into requirements-dev.txt
	$(UV) pip compile $(UPGRADE) --universal --python-version 3.11 --extra dev --generate-hashes \
	  --no-annotate --no-emit-index-url --custom-compile-command 'make lock' --output-file $(LOCK) pyproject.toml

audit: $(VENV)/.dev  ## Look the locked packages up among the known vulnerabilities
	$(BIN)/python .ci/audit.py $(LOCK)

clean:  ## Remove the virtual environment, the built documentation and the tools' caches
	rm -rf $(VENV) site .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache

$(VENV)/.dev: pyproject.toml $(LOCK) | $(BIN)/uv
	@echo "Installing prefect-mipro and its development tools into $(VENV): about half a minute the first time"
	@$(call install,dev)
	@touch $(VENV)/.docs $(VENV)/.embedded $@

$(VENV)/.docs: pyproject.toml $(LOCK) | $(BIN)/uv
	@echo "Installing prefect-mipro and what builds its documentation into $(VENV)"
	@$(call install,docs)
	@touch $@

$(VENV)/.embedded: pyproject.toml $(LOCK) | $(BIN)/uv
	@echo "Installing prefect-mipro and its server into $(VENV)"
	@$(call install,embedded)
	@touch $@

# pip brings uv, in the locked version too; then uv takes seconds for what takes pip minutes.
$(BIN)/uv: | $(BIN)/pip
	@sed -n '/^uv==/,/[^\\]$$/p' $(LOCK) > $(VENV)/uv.txt
	$(PIP) install --require-hashes --requirement $(VENV)/uv.txt

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "prefect-mipro needs Python 3.11 or newer, and '$(PYTHON)' is not one. Name one that is: make $(MAKECMDGOALS) PYTHON=python3.12"; \
	  exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	  rm -rf $(VENV); \
	  echo "'$(PYTHON) -m venv' failed. On Debian and Ubuntu: apt install python3-venv"; \
	  exit 1; }
