# Tenderbox. `make help` lists what can be done here; CONTRIBUTING.md says when to do which.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

# The box is pure Go and always will be: one static file that runs on any Linux.
export CGO_ENABLED ?= 0

# A checkout without tags, or a source folder without git, still builds and still says what it is.
VERSION ?= $(shell git describe --tags --match 'v*' --dirty 2>/dev/null || echo v0.0.0-dev)
COMMIT  ?= $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)

# -trimpath, no VCS stamp and no build id: equal sources make equal bytes, wherever they are built.
BUILDFLAGS := -trimpath -buildvcs=false -ldflags "-s -w -buildid= -X main.version=$(VERSION) -X main.commit=$(COMMIT)"
BIN        ?= bin/tenderbox
# The race detector watches our Go, not SQLite's C as translated to Go: watching that too finds nothing and takes five times as long.
RACEFLAGS  := -gcflags=modernc.org/sqlite/lib=-race=false -gcflags=modernc.org/libc/...=-race=false
STATICCHECK := go tool -modfile=tools/go.mod staticcheck

# What `make torture` and `make bench` take, for instance `make torture SEED=42 ROUNDS=20 DURATION=30s`.
SEED     ?=
ROUNDS   ?=
DURATION ?=
KNOBS     = $(if $(ROUNDS),-rounds=$(ROUNDS)) $(if $(DURATION),-duration=$(DURATION))

.DEFAULT_GOAL := help
.PHONY: help demo build test race check fmt bench bench-drain bench-jobs bench-events bench-peers torture torture-power model sdk tools dist clean

help: ## Lists these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

demo: build ## Takes payments with the line cut and shows each settle once
	bin/tenderbox demo

build: ## Builds bin/tenderbox, static and stripped
	CGO_ENABLED=0 go build $(BUILDFLAGS) -o $(BIN) ./cmd/tenderbox

test: ## Runs every test
	go test ./...

race: ## Runs every test under the race detector (needs gcc)
	CGO_ENABLED=1 go test -race $(RACEFLAGS) ./...

check: ## Format, vet, staticcheck, the house rules, the shell scripts
	@unformatted=$$(find . -name '*.go' -not -path './bin/*' -exec gofmt -l {} +); \
	  if [ -n "$$unformatted" ]; then echo "gofmt these (make fmt does):"; echo "$$unformatted"; exit 1; fi
	go vet ./...
	$(STATICCHECK) ./...
	go test ./internal/arch
	sh -n dist/install.sh && sh -n dist/pack.sh && bash -n .ci/run

fmt: ## Formats every Go file
	gofmt -w $$(find . -name '*.go' -not -path './bin/*')

bench: ## Payments/s beside a no-op server, fsyncs, footprint (ROUNDS= DURATION=)
	go run ./internal/bench $(KNOBS) $(BENCHFLAGS)

bench-drain: ## Drains, outcomes waited for, and payments beside a million settled ones (ROUNDS= DURATION=)
	go run ./internal/bench drain $(KNOBS) $(BENCHFLAGS)

bench-jobs: ## Jobs/s beside bare loops and no-op servers, and with a million stored (ROUNDS=)
	go run ./internal/bench jobs $(if $(ROUNDS),-rounds=$(ROUNDS)) $(BENCHFLAGS)

bench-events: ## How soon events are heard, how fast the stream fills, what a listener costs (ROUNDS= DURATION=)
	go run ./internal/bench events $(KNOBS) $(BENCHFLAGS)

# What the peers need comes from Debian, if there is one and we may install it; what is missing is left out of the table. Their
# services are not started (RUNLEVEL=1): the program runs servers of its own. -mod=mod follows what the product itself requires by now.
bench-peers: build ## The same jobs on asynq (Redis), River (PostgreSQL) and Tenderbox (PEERFLAGS=)
	@for missing in $$(command -v redis-server >/dev/null || echo redis-server) $$(ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || echo postgresql); do \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing $$missing"; \
	    apt-get update -qq && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null || echo "$$missing could not be installed"; \
	  else echo "$$missing is missing: as root on Debian this target installs it"; fi; done
	@unformatted=$$(gofmt -l internal/peers); if [ -n "$$unformatted" ]; then echo "gofmt these: $$unformatted"; exit 1; fi
	cd internal/peers && export GOFLAGS=-mod=mod && go vet ./... && go run . -dir '$(abspath $(dir $(BIN)))' -box '$(abspath $(BIN))' $(PEERFLAGS)

torture: ## Kills and restarts boxes under faults, then counts (SEED= ROUNDS= DURATION=)
	go test -count=1 -v -timeout=120m ./internal/torture -run '^TestTorture(Jobs)?$$' -args \
	  -rounds=10 -flight=100000 $(if $(SEED),-seed=$(SEED)) $(KNOBS)

# The disk is a file system in user space. In a mount namespace of its own nothing stays mounted, however it ends. -mod=mod follows
# what the product itself requires by now.
torture-power: build ## The same with power cuts: what was not synced is lost, torn, reordered (root, /dev/fuse; SEED= ROUNDS= DURATION=)
	@[ "$$(id -u)" = 0 ] && [ -c /dev/fuse ] || { echo "torture-power mounts a file system of its own: it needs Linux with /dev/fuse, and root"; exit 1; }
	@unformatted=$$(gofmt -l internal/powercut); if [ -n "$$unformatted" ]; then echo "gofmt these: $$unformatted"; exit 1; fi
	cd internal/powercut && export GOFLAGS=-mod=mod && go vet ./... && unshare --mount go test -count=1 -v -timeout=120m ./... -args \
	  -box '$(abspath $(BIN))' $(if $(SEED),-seed=$(SEED)) $(KNOBS)

model: ## Random worlds in simulated time, each judged by its clients and its processor (SEEDS= SEED=)
	go test -count=1 -v -timeout=120m ./internal/model -run '^TestModel$$' -args -seeds=$(or $(SEEDS),2000) $(if $(SEED),-seed=$(SEED))

# -mod=mod follows what the product itself requires by now.
sdk: build ## The Stripe-compatible surface, used by Stripe's own SDKs for Go and Node (needs node and npm)
	@for needed in node npm; do command -v $$needed >/dev/null || { echo "$$needed is missing: on Debian, apt-get install nodejs npm"; exit 1; }; done
	cd internal/sdk/node && npm ci
	cd internal/sdk && export GOFLAGS=-mod=mod && go vet ./... && go test -count=1 ./... -args -box '$(abspath $(BIN))'

tools: ## Downloads and builds the pinned tools that checks and tests use
	$(STATICCHECK) -version
	go tool -modfile=tools/go.mod stripe-mock -version

dist: ## Reproducible tarballs for linux amd64 and arm64, with checksums, in bin/dist
	VERSION='$(VERSION)' sh dist/pack.sh bin/dist

clean: ## Deletes what was built
	rm -rf bin
