# Two commands do everything: `make demo` installs and generates pictures, `make test` installs and tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-more test-lowest check clean

demo: $(INSTALLED)
	$(BIN)/fourm generate --out out/demo --overwrite
	@echo "Captions are in out/demo/caption, pictures in out/demo/rgb."

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Slow tests too, and more examples for each property.
test-more: $(INSTALLED)
	FOURM_MORE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal -m 'not gpu and not hub'

# The lowest versions that pyproject.toml allows (torch aside), in an environment of their own.
LOWEST := $(VENV)-lowest
test-lowest:
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet $$(grep '^torch==' constraints.txt)
	$(LOWEST)/bin/python tests/lowest_bounds.py > $(LOWEST)/lowest.txt
	$(LOWEST)/bin/python -m pip install --quiet -c $(LOWEST)/lowest.txt -e '.[dev]'
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -q -n auto --dist worksteal

# Torch comes first and alone, so that a build that is on the machine already (CPU or CUDA) satisfies the rest.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("fourm needs Python 3.11 or newer") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $(INSTALLED)

clean:
	rm -rf $(VENV) $(LOWEST) out build dist
