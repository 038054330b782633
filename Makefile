# make serve   install what is pinned, and serve the bundled model on http://127.0.0.1:8000
# make test    install the development tools as well, and run all tests
# make lint    formatting, lint rules, types
# make references    compare with transformers, timm and torchvision, model by model
# make audit   look up known vulnerabilities of everything that is pinned; needs PyPI's JSON API
# make bench   measure this machine, the engines, decoding, the service and its peers; takes an hour and 10 GB of disk
# make soak    ten minutes of good, broken, oversize and vanishing callers (MINUTES=2 for a try)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: serve test lint format references audit bench soak
.DELETE_ON_ERROR:

serve: $(VENV)/installed
	@exec $(BIN)/vit-serve serve

test: $(VENV)/installed-dev
	$(BIN)/pytest

lint: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# the table of docs/models.md
references: $(VENV)/installed-dev
	@$(BIN)/python -m tests.support.references

# strict, because without it what could not be looked up passes for sound
audit: $(VENV)/audit/installed
	@$(VENV)/audit/bin/pip-audit --strict --disable-pip --no-deps --progress-spinner off --requirement constraints.txt || \
	{ echo "make audit: failed; either a pin has a known vulnerability, or it could not be looked up; see above" >&2; exit 1; }

# progress on standard error; the table on standard output, all numbers in .bench/results.json
bench: $(VENV)/installed-dev
	@$(BIN)/python -m benchmarks.peers.install
	@$(BIN)/python -m benchmarks

# exits with 1 if an answer is wrong, or the service is not afterwards what it was before
soak: MINUTES ?= 10
soak: $(VENV)/installed-dev
	@$(BIN)/python -m benchmarks.soak --minutes $(MINUTES)

format: $(VENV)/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# an environment of its own: the auditor and what it pulls in have no business beside what they judge
$(VENV)/audit/installed: constraints.txt | $(BIN)/python
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/pip install --quiet --constraint constraints.txt pip-audit
	@touch $@

$(VENV)/installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@# references for tests; without what they need, because torchvision has no build for a torch without CUDA
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps timm torchvision
	@touch $@ $(VENV)/installed
