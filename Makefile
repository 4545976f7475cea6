# Everything that is done with the checkout; `make help` lists it.
SHELL := /bin/bash
RUN ?= run
BIN ?= target/release
export RUN BIN

.PHONY: help up down build images test test-full fuzz simulate counts counts-write lint docs deny bench bench-twin bench-history trace fmt

help: ## what there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1 \t\2/p' $(MAKEFILE_LIST) | expand -t 18

up: ## installs what is missing, builds, starts Sconce on this machine; ready when it returns (RUN=dir: another run directory)
	@scripts/packages up
	@$(MAKE) --no-print-directory build
	@compose/local/cluster up

down: ## stops it; the data stays
	@compose/local/cluster down

build: ## all binaries, into target/release
	@cargo build --release --workspace --bins --locked

images: ## container images from this checkout, also where no container registry is reached
	@compose/build-images.sh

test: ## everything that can be tested on this machine in half an hour
	@scripts/packages test
	@$(MAKE) --no-print-directory lint docs
	@if command -v cargo-deny >/dev/null; then $(MAKE) --no-print-directory deny; \
	else echo "deny: cargo-deny is not installed, make test-full installs it"; fi
	@scripts/fuzz 5
	@scripts/counts check
	@scripts/test

test-full: ## the same with the long runs: 100 kill rounds, long fio and fsx, more seeds, compose
	@scripts/packages test
	@$(MAKE) --no-print-directory lint docs deny
	@scripts/fuzz 60
	@scripts/counts check
	@SCONCE_TEST_FULL=1 scripts/test

fuzz: ## runs each fuzz target for 5 minutes (FOR=seconds: longer or shorter; what is found: fuzz/artifacts)
	@scripts/packages test
	@scripts/fuzz $(or $(FOR),300)

simulate: ## whole clusters from seeds, under faults (SEEDS=n, FROM=first seed; what fails leaves its trace in target/simulation)
	@mkdir -p target/simulation
	@cargo run --quiet --locked -p sconce-simulation --bin simulate -- \
	--seeds $(or $(SEEDS),1000) --from $(or $(FROM),1) --threads $$(nproc) --trace target/simulation

counts: ## instructions of the hot path's pieces under callgrind; an error where one is 5 % above docs/counts.md
	@scripts/packages test
	@scripts/counts check

counts-write: ## the same, and writes them into docs/counts.md
	@scripts/packages test
	@scripts/counts write

lint: ## formatting and clippy, warnings are errors
	@cargo fmt --all --check
	@cargo clippy --workspace --all-targets --locked -- --deny warnings

docs: ## the documentation builds without a warning
	@RUSTDOCFLAGS="--deny warnings" cargo doc --workspace --no-deps --document-private-items --locked --quiet

deny: ## licences, sources and banned crates (not advisories: their database is fetched, which a test must not need)
	@command -v cargo-deny >/dev/null || cargo install cargo-deny@0.20.2 --locked
	@cargo deny --all-features --locked check --hide-inclusion-graph bans licenses sources

bench: build ## measures against qemu-nbd and writes docs/benchmarks.md
	@scripts/packages test
	@$(BIN)/loadtest bench --write docs/benchmarks.md

bench-twin: build ## measures what a twin costs and how long a move takes; writes docs/benchmarks.md (five minutes)
	@scripts/packages test
	@$(BIN)/loadtest twin --write docs/benchmarks.md

bench-history: build ## measures snapshots, clones, space and restarts; writes docs/benchmarks.md and docs/growth.svg (ten minutes)
	@scripts/packages test
	@$(BIN)/loadtest snapshots --write docs/benchmarks.md
	@$(BIN)/loadtest space --write docs/benchmarks.md
	@$(BIN)/loadtest growth --write docs/benchmarks.md --plot docs/growth.svg

trace: ## records a minute of load with LTTng on this machine and names the report (SCENARIO=file: another one of loadtest/scenarios)
	@scripts/packages test
	@$(MAKE) --no-print-directory build
	@$(BIN)/loadtest run $(or $(SCENARIO),loadtest/scenarios/trace.toml)

fmt: ## formats the code
	@cargo fmt --all
