# make serve   install the pinned packages, and serve the bundled model on http://127.0.0.1:8000
# make test    install the development tools as well, and run all tests
# make lint    formatting, lint rules, types
# make references    compare with transformers, timm and torchvision, model by model
# make audit   look up known vulnerabilities of all pins; needs PyPI's JSON API
# make bench   measure machine, engines, decoding, service and peers of both kinds (KINDS=eager: one); two hours, 10 GB of disk
# make image-test   build the image, and run replicas of it behind the proxy, killed and replaced under load; needs Docker
# make ray-test    test replicas under Ray Serve, in an environment of their own; five minutes
# make soak    ten minutes of good, broken, oversize and disconnecting clients (MINUTES=2 for a try)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: serve test lint format references audit bench image-test soak ray-test
.DELETE_ON_ERROR:

serve: $(VENV)/installed
	@exec $(BIN)/vit-serve serve

# files of tests are shared out among processes; each starts servers of its own, so that more than four want much memory
test: $(VENV)/installed-dev
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# the tables of docs/models.md
references: $(VENV)/installed-dev
	@$(BIN)/python -m tests.support.comparison

# strict, because otherwise a failed lookup passes
audit: $(VENV)/audit/installed
	@$(VENV)/audit/bin/pip-audit --strict --disable-pip --no-deps --progress-spinner off --requirement constraints.txt || \
	{ echo "make audit: failed: a pin has a known vulnerability or could not be looked up; see above" >&2; exit 1; }

# progress on standard error; the table on standard output, all numbers in .bench/results.json
bench: KINDS ?= eager openvino
bench: $(VENV)/installed-dev
	@$(BIN)/python -m benchmarks.peers.install
	@$(BIN)/python -m benchmarks --kinds $(KINDS)

# exits with 1 if a step fails or a goal is missed; BASE and HAPROXY_IMAGE name images where Docker Hub is out of reach
image-test: $(VENV)/installed-dev
	@$(BIN)/python -m benchmarks.image_test

# exits with 1 if a goal is missed
soak: MINUTES ?= 10
soak: $(VENV)/installed-dev
	@$(BIN)/python -m benchmarks.soak --minutes $(MINUTES)

# one cluster of Ray after another: not in parallel
ray-test: $(VENV)/ray/installed
	@$(VENV)/ray/bin/python -m pytest tests/ray

format: $(VENV)/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# a separate environment keeps the auditor's dependencies out of the audited one
$(VENV)/audit/installed: constraints.txt | $(BIN)/python
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/pip install --quiet --constraint constraints.txt pip-audit
	@touch $@

# a separate environment, since Ray brings 47 packages
$(VENV)/ray/installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PYTHON) -m venv $(VENV)/ray
	$(VENV)/ray/bin/pip install --quiet --constraint constraints.txt --editable '.[ray,test]'
	@touch $@

$(VENV)/installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/installed-dev: pyproject.toml client/pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]' --editable client
	@# references for tests; without dependencies, because torchvision has no build for a CPU torch
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps timm torchvision
	@touch $@ $(VENV)/installed
