# Everything that a developer or CI runs. `make` lists the targets.
#
# Options, as in `make test TEST_ARGS='--test it watch::'`:
#   TEST_ARGS     further arguments of `cargo test`
#   CARGO         the cargo to use
#   CARGO_FLAGS   flags of every cargo command; CI sets --locked
#   BENCH_ARGS    arguments of `make bench` and `make profile`; `--help` lists them
#   FAULT_SECONDS how long things break in each run of `make faults`; 60 by default
#   BUF_AGAINST   the commit that the protos are compared with

CARGO ?= cargo
CARGO_FLAGS ?=
TEST_ARGS ?=
BENCH_ARGS ?=
FAULT_SECONDS ?= 60
export CARGO CARGO_FLAGS

# A failed test says what failed; the frames of the runtime around it hide that. With them:
# `make test RUST_BACKTRACE=1`.
export RUST_BACKTRACE := 0

# Where the tests find the programs that share no code with Tidings (see tests/foreign).
TOOLS := $(CURDIR)/.tools
export TIDINGS_TEST_PYTHON := $(TOOLS)/python/bin/python
export TIDINGS_TEST_NODE_PATH := $(TOOLS)/node/node_modules
export TIDINGS_TEST_GO_RECEIVER := $(TOOLS)/bin/go_receiver
export TIDINGS_TEST_GO_VERIFY := $(TOOLS)/bin/go_verify

.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets
	@echo "Targets:"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: test
test: tools ## Install what is missing, then run every test on SQLite and on a PostgreSQL of its own
	scripts/with-postgres $(CARGO) test --workspace --all-features $(CARGO_FLAGS) $(TEST_ARGS)

.PHONY: faults
faults: ## Break the service under load, in every way of docs/faults.md, and report
	@scripts/install-tools postgres
	TIDINGS_TEST_FAULT_SECONDS=$(FAULT_SECONDS) scripts/with-postgres \
		$(CARGO) test --all-features --test it $(CARGO_FLAGS) -- faults:: --nocapture --test-threads=1

.PHONY: bench
bench: ## Measure rates, latencies, cost and memory on this machine into docs/benchmarks
	@scripts/install-tools postgres
	scripts/with-postgres $(CARGO) bench --bench throughput $(CARGO_FLAGS) -- $(BENCH_ARGS)

.PHONY: profile
profile: ## Profile the service under W1 (or BENCH_ARGS) with perf into target/profile
	@scripts/install-tools postgres
	scripts/profile $(BENCH_ARGS)

.PHONY: check
check: ## Run all that CI runs, in its order
	.ci/run

.PHONY: fmt
fmt: ## Format the Rust code
	$(CARGO) fmt --all

.PHONY: fmt-check
fmt-check: ## Check the format of the Rust code
	$(CARGO) fmt --all --check

.PHONY: lint
lint: ## Run clippy on everything; a warning is an error
	$(CARGO) clippy --workspace --all-targets --all-features $(CARGO_FLAGS) -- --deny warnings

.PHONY: doc
doc: ## Build the API documentation; a warning is an error
	RUSTDOCFLAGS='--deny warnings' $(CARGO) doc --workspace --all-features --no-deps --document-private-items $(CARGO_FLAGS)

.PHONY: deny
deny: ## Check dependencies: bans, licences, sources, known vulnerabilities
	scripts/deny

.PHONY: buf
buf: ## Lint the protos and check that they break no older client
	scripts/buf

.PHONY: docs-check
docs-check: ## Check that the generated documents in docs/ are up to date
	scripts/generated-docs --check

.PHONY: generate
generate: ## Write the generated documents in docs/ anew
	scripts/generated-docs --write

.PHONY: tools
tools: ## Install PostgreSQL and the test programs in .tools where they are missing
	@scripts/install-tools

.PHONY: clean-tools
clean-tools: ## Remove .tools (system packages stay)
	rm -rf .tools
