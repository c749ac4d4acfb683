# `make help` lists the targets. Everything they need they install: see scripts/.
.DEFAULT_GOAL := help
SHELL := /bin/bash
BIN := .venv/bin
STATE ?= .ironwork-dev
# Beside SoftHSM, for tests only: two more PKCS#11 modules and a compiler for the models of others, a
# PKCS#11 tracer, fault injection, and the log verifier that others wrote.
TEST_PACKAGES := libnss3 libnss3-tools gcc libc6-dev opensc-pkcs11 opencryptoki strace e2fsprogs golang-go golang-golang-x-mod-dev openssl
GENERATED := protos/ironwork/keys/v1

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  \033[36m%-16s\033[0m %s\n", $$1, $$2}'

.PHONY: setup
setup: ## Install what is missing: SoftHSM (apt), Python packages (.venv)
	@scripts/system-packages softhsm2
	@scripts/python-env

.PHONY: test-setup
test-setup: setup ## Install what only tests need (apt, .venv-tlog)
	@scripts/system-packages $(TEST_PACKAGES)
	@scripts/tlog-env

.PHONY: demo
demo: setup ## Play the whole main job on a throw-away server, about a minute
	@scripts/tlog-env
	@$(BIN)/python -m demo

.PHONY: dev
dev: setup ## Keep a development server running; prints what to type next
	@$(BIN)/ironwork-server dev --state $(STATE)

.PHONY: test
test: test-setup ## Run the whole test suite, with coverage of the security core
	@scripts/run-tests

.PHONY: test-slow
test-slow: test-setup ## Run the long and hostile tests too
	@$(BIN)/pytest -m slow --timeout=1800

.PHONY: test-sdks
test-sdks: setup ## Run the SDKs built on httpx (anthropic 0.x, LiteLLM) over a server
	@scripts/sdk-tests

.PHONY: bench-upstream
bench-upstream: setup ## Measure other upstream clients against ours (a few minutes)
	@scripts/bench-upstream

.PHONY: bench-hsm
bench-hsm: test-setup ## Measure the HSM backend beside raw C_Decrypt, and a slow HSM (a few minutes)
	@$(BIN)/python bench/hsm.py
	@$(BIN)/python bench/hsm_slow.py

.PHONY: lint
lint: setup ## Ruff, formatting, shell scripts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: types
types: setup ## mypy --strict
	$(BIN)/mypy hsm/ironwork_hsm audit/ironwork_audit server/ironwork_server clients/python/ironwork_client tests/simulator/ironwork_simulator demo

.PHONY: imports
imports: setup ## The import rules (who may know whom)
	$(BIN)/lint-imports

.PHONY: format
format: setup ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: generate
generate: setup ## Generate the Python code from protos/
	@scripts/generate

.PHONY: generate-check
generate-check: setup ## Fail when the committed generated code has drifted
	@scripts/generate --check

.PHONY: lock
lock: setup ## Resolve requirements/*.in into hash-locked requirements/*.txt
	@scripts/lock

.PHONY: check
check: lint types imports generate-check ## All static checks

.PHONY: clean
clean: ## Remove what these targets made (not the state folder of `make dev`)
	rm -rf .venv .venv-protoc .venv-sdks .venv-bench .venv-tlog .venv-tlog.lock dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage htmlcov
