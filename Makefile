# The only entry point: what a person runs and what CI runs are the same targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# Builds and binaries live outside the checkout, so that a fresh clone starts warm.
export LONGSHORE_CACHE ?= $(HOME)/.cache/longshore
export CARGO_TARGET_DIR ?= $(LONGSHORE_CACHE)/target
# What the suite runs on: `http` is the embedded broker behind its server, `postgres-poll` PostgreSQL without LISTEN.
BROKERS ?= memory,embedded,http,redis,postgres,postgres-poll
# What the real sidecar runs on in it: those of BROKERS that another process can reach.
comma := ,
space := $(subst ,, )
export LONGSHORE_TEST_WORKER_BROKERS ?= $(subst $(space),$(comma),$(filter http redis postgres,$(subst $(comma), ,$(BROKERS))))
export LONGSHORE_CONFORMANCE_DIR ?= $(CURDIR)/target/conformance
CLUSTER := e2e/cluster/cluster
STEP := e2e/lib/step

.PHONY: help
help: ## What there is to run.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 22

.PHONY: demo
demo: ## Install what is missing, make a cluster, install Longshore, run the hello example.
	@e2e/demo/demo

.PHONY: demo-down
demo-down: cluster-down ## Take the demo's cluster away.

.PHONY: test
test: ## Everything: lint, unit, property, conformance, chart, end to end.
	@e2e/lib/gate

.PHONY: packages
packages: ## Debian packages that building and testing need.
	@e2e/lib/packages

.PHONY: fmt
fmt: ## Format the code.
	@cargo fmt --all

.PHONY: lint
lint: packages ## Formatting, clippy, shellcheck, generated files.
	@$(STEP) "formatting" "a second" cargo fmt --all --check
	@$(STEP) "clippy" "2 min cold" cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
	@$(STEP) "shellcheck" "seconds" e2e/lib/shell-lint
	@$(STEP) "generated files" "seconds" $(MAKE) --no-print-directory crds-check

.PHONY: unit
unit: packages servers ## Unit and property tests, and the conformance suite on all brokers.
	@LONGSHORE_TEST_DRIVERS=$(BROKERS) $(STEP) "unit, property and conformance tests" "10 min cold" cargo test --workspace --locked --quiet --exclude longshore-e2e

.PHONY: servers
servers: ## Programs of the servers that the suite starts; no service is installed or started.
	@$(STEP) "programs of Redis and PostgreSQL" "20 s cold" e2e/lib/server-programs

.PHONY: crds
crds: ## Write the CustomResourceDefinitions into the chart.
	@cargo run --quiet --locked -p longshore-crds --bin crdgen -- charts/longshore/definitions

.PHONY: crds-check
crds-check:
	@cargo run --quiet --locked -p longshore-crds --bin crdgen -- --check charts/longshore/definitions

.PHONY: conformance
conformance: packages servers ## The conformance suite; BROKERS=embedded,redis names the brokers.
	@LONGSHORE_TEST_DRIVERS=$(BROKERS) $(STEP) "conformance" "3 min" cargo test --locked --quiet -p longshore-drivers -p longshore-worker-sidecar --test conformance

.PHONY: guarantees
guarantees: ## Write docs/guarantees.md from what the conformance suite recorded.
	@cargo run --quiet --locked -p longshore-drivers --example guarantees -- "$(LONGSHORE_CONFORMANCE_DIR)" docs/guarantees.md

.PHONY: guarantees-check
guarantees-check:
	@cargo run --quiet --locked -p longshore-drivers --example guarantees -- --check "$(LONGSHORE_CONFORMANCE_DIR)" docs/guarantees.md

.PHONY: race
race: ## Models of the concurrent core, and ThreadSanitizer; SCHEDULES=20000 per model, TSAN=0 leaves the latter out.
	@e2e/lib/race

.PHONY: fuzz
fuzz: ## Each fuzz target for SECONDS=60; TARGET=name runs one.
	@FUZZ_SECONDS=$(or $(SECONDS),60) e2e/lib/fuzz

.PHONY: flake
flake: packages servers ## The timing-sensitive tests REPEAT=20 times under load; a line for docs/flake-log.md.
	@e2e/lib/flake

.PHONY: coverage
coverage: packages ## Which lines the unit, property and conformance tests run, per crate. No gate.
	@e2e/lib/coverage

.PHONY: compatibility
compatibility: ## Write the versions that the conformance suite ran on into docs/compatibility.md.
	@e2e/lib/compatibility "$(LONGSHORE_CONFORMANCE_DIR)" docs/compatibility.md

.PHONY: versions
versions: ## The conformance suite on other versions of the servers, and through PgBouncer; ONLY=postgres-18,valkey-8 names some.
	@e2e/lib/versions

.PHONY: brokers-up
brokers-up: ## Start servers for the tests (Redis, PostgreSQL), and print how to name them.
	@e2e/lib/brokers up

.PHONY: brokers-down
brokers-down: ## End them and remove their data.
	@e2e/lib/brokers down

.PHONY: bench
bench: ## Figures, each beside its raw cost: the embedded broker in process, and the product on the cluster.
	@e2e/lib/bench

.PHONY: bench-brokers
bench-brokers: ## What the drivers do beside their bare servers, guarded by stored ratios; DEPTH=1000000 goes on in deep queues, STORE=1 stores.
	@e2e/lib/bench-brokers

.PHONY: soak
soak: ## A million jobs on each broker while brokers, workers and networks fail. Hours.
	@BROKERS=$(BROKERS) e2e/lib/soak

.PHONY: images
images: packages ## Static binaries and images from scratch.
	@e2e/lib/binaries
	@e2e/images/build base
	@e2e/images/build product "$(CARGO_TARGET_DIR)/x86_64-unknown-linux-musl/release" dev

.PHONY: cluster
cluster: ## A local Kubernetes cluster.
	@$(CLUSTER) install
	@$(CLUSTER) up

.PHONY: cluster-down
cluster-down: ## Take the local cluster away.
	@$(CLUSTER) down

.PHONY: install
install: cluster images ## Install the chart of this checkout on the cluster.
	@e2e/lib/install

.PHONY: chart-test
chart-test: ## helm lint, schemas, and a server-side dry run of all objects and examples.
	@$(STEP) "chart" "1 min" charts/tests/run

.PHONY: e2e
e2e: install ## The scenarios on the cluster; SCENARIO=name runs one.
	@$(STEP) "scenarios" "10 min" cargo test --locked --quiet -p longshore-e2e --test scenarios -- $(SCENARIO)
