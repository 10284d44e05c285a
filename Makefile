# Both commands set up everything they need in .venv; nothing is installed anywhere else.
PYTHON ?= python3
BIN := .venv/bin
# What pip is given for PyTorch, for example another version or index.
TORCH ?= torch==2.13.0

.PHONY: demo test test-avx2 check docs lists release clean

demo: .venv/installed
	$(BIN)/python Docs/demo.py demo

# Three files at a time on two cores: a quarter of their time is waiting for processes. Compiled files are kept,
# or each would rewrite the assertions of all tests again each time.
test: .venv/installed-dev
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

# What depends on the processor, as on one without AVX-512 and bfloat16 (AMD Zen 3, most laptops).
test-avx2: .venv/installed-dev
	ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m processor

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml SegMambaSlicer
	$(BIN)/mypy
	cd SegMambaSlicer && ../$(BIN)/lint-imports --config ../pyproject.toml

# The API reference, into build/docs; a warning is an error.
docs: .venv/installed-dev
	$(BIN)/python -m sphinx -W --keep-going -q -b html Docs/api build/docs

# The lists of files that the module's CMakeLists.txt installs, from the tree.
lists: .venv/installed-dev
	PYTHONPATH=Testing $(BIN)/python -m helpers.cmake_lists

# What a release has besides the source: the models' files, their SHA-256 sums, and the manifest with their addresses.
release:
	$(PYTHON) release/assets.py build/release/$(or $(TAG),$(error name the tag: make release TAG=v1.2.3)) --tag $(TAG)

.venv/bin/python:
	@$(PYTHON) -c "import ensurepip, venv" 2>/dev/null || \
	  { echo "Python's venv module is missing: install it first, on Debian and Ubuntu with: apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip

.venv/installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv demo build Docs/api/generated
