# make demo   a video from a prompt: make demo PROMPT="a cat face, blue background"
# make studio the page and the API on this machine: make studio PORT=8000
# make test   every test
# make fuzz   hostile files, longer than in the tests: make fuzz EXAMPLES=10000
# make lint   ruff, mypy and hadolint
# make docs   the documentation site, in build/site
#
# Each sets up what it needs in .venv, once, and again when pyproject.toml or constraints.txt change.

PYTHON ?= python3
PROMPT ?= cat face, green background
OUTPUT ?= demo.mp4
SEED ?= 2
WORKERS ?= 2
EXAMPLES ?= 2000
PORT ?= 7860

BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt
# the build backend is installed like all the rest, since pip would fetch it unpinned otherwise
BUILD_BACKEND := hatchling hatch-fancy-pypi-readme editables

# a shell variable, so that a prompt may hold quotes
export PROMPT

.PHONY: demo studio test lint docs clean

demo: .venv/installed-core
	@$(BIN)/magicvideo generate "$$PROMPT" --seed $(SEED) --output "$(OUTPUT)" --overwrite
	@echo "The video is $(abspath $(OUTPUT))"

studio: .venv/installed-studio
	@$(BIN)/magicvideo studio --port $(PORT)

test: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

fuzz: .venv/installed-dev
	OMP_NUM_THREADS=1 FUZZ_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest -n $(WORKERS) tests/fuzz

lint: .venv/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile

docs: .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf .venv

.venv/installed-core: .venv/bin/python pyproject.toml constraints.txt
	$(INSTALL) $(BUILD_BACKEND)
	$(INSTALL) --no-build-isolation --editable .
	@touch $@

.venv/installed-studio: .venv/bin/python pyproject.toml constraints.txt
	$(INSTALL) $(BUILD_BACKEND)
	$(INSTALL) --no-build-isolation --editable '.[studio]'
	@touch $@ .venv/installed-core

.venv/installed-dev: .venv/bin/python pyproject.toml constraints.txt
	$(INSTALL) $(BUILD_BACKEND)
	$(INSTALL) --no-build-isolation --editable '.[dev]'
	@touch $@ .venv/installed-core

.venv/installed-docs: .venv/installed-dev
	$(INSTALL) --no-build-isolation --editable '.[dev,docs]'
	@touch $@

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo "magicvideo needs Python 3.10 or newer, which $(PYTHON) is not; name another, such as: make demo PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments; install its venv module (on Debian and Ubuntu: apt install python3-venv)." >&2; exit 1; }
	$(PYTHON) -m venv .venv
