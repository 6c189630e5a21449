# Freshet's development tasks: `make help` lists them. POSIX sh and GNU make 3.81 (macOS) are enough.

GO      ?= go
ARGS    ?=
FUZZTIME ?= 10s
COUNT   ?= 6
SEED    ?= 1
RUNS    ?=
KILLS   ?= 1000
DURATION ?= 5m
REPLICAS ?= 10,32,100,300,1000

# The modules whose tests are ours to pass: the root and every nested one, the tools' excepted.
MODULES := . $(filter-out tools,$(patsubst %/go.mod,%,$(wildcard */go.mod */*/go.mod)))

# Linter and benchstat, at the versions pinned in tools/go.mod; Go builds them once and caches them.
TOOL = $(GO) tool -modfile=$(CURDIR)/tools/go.mod

# Where git refuses to read the checkout (another owner's folder, a tarball), build without a revision.
BUILDVCS := $(shell git rev-parse --verify HEAD >/dev/null 2>&1 && echo auto || echo false)

# The race detector needs a C compiler.
RACE = $(shell test "$$($(GO) env CGO_ENABLED)" = 1 && echo -race)

.DEFAULT_GOAL := help
.PHONY: help up test check race lint fmt bench benchstat fuzz mutants sim scale faults kills rivals cover build servers clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

up: servers build ## run three coherent replicas of the shop on real servers; more flags by ARGS='--replay FILE --for 30s'
	@exec ./bin/freshet up --replicas 3 $(ARGS)

# The tests wait for servers more than they compute: one package more at once than there are processors, and those
# that take longest first.
PACKAGES = $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)
LONGEST = ./node ./cmd/freshet ./examples/shop

test: servers ## run all tests of all modules on real servers, with the race detector
	@test -n "$(RACE)" || echo 'no C compiler (gcc or clang): testing without the race detector' >&2
	@for module in $(MODULES); do \
		echo "== go test $(RACE) -p $(PACKAGES) -timeout 10m ./...  (in $$module)"; \
		(cd "$$module" && $(GO) test $(RACE) -p $(PACKAGES) -timeout 10m $(ARGS) $$(ls -d $(LONGEST) 2>/dev/null) ./...) || exit 1; \
	done

check: lint servers ## what to run before every commit: formatting, vet, linters, and the tests that are quick
	@for module in $(MODULES); do \
		(cd "$$module" && $(GO) test -short -timeout 5m ./...) || exit 1; \
	done

race: servers ## hunt for races and flakes: the root's tests ten times over; one package by ARGS=./tiers
	$(GO) test -race -count 10 -timeout 60m $(if $(ARGS),$(ARGS),./...)

lint: ## check formatting and style of all modules, the import line among it
	@for module in $(MODULES); do \
		echo "== golangci-lint run  (in $$module)"; \
		(cd "$$module" && $(TOOL) golangci-lint run --config $(CURDIR)/.golangci.yml ./...) || exit 1; \
	done

fmt: ## format the Go code of all modules
	@for module in $(MODULES); do \
		(cd "$$module" && $(TOOL) golangci-lint fmt --config $(CURDIR)/.golangci.yml ./...) || exit 1; \
	done

bench: servers ## measure the promised numbers, as ratios, beside their targets; some by ARGS='-only l1', all flags by ARGS=-h
	@cd bench && $(GO) build -buildvcs=$(BUILDVCS) -o ../bin/bench .
	@exec ./bin/bench $(ARGS)

benchstat: servers ## run all Go benchmarks COUNT times and summarise them; choose some by ARGS='-bench L1'
	@for module in $(MODULES); do \
		(cd "$$module" && $(GO) test -run '^$$' -bench . -benchmem -count $(COUNT) -timeout 60m $(ARGS) ./...) || exit 1; \
	done > bench.out || { cat bench.out; exit 1; }
	@$(TOOL) benchstat bench.out

fuzz: servers ## run every fuzz test for FUZZTIME each
	@GO='$(GO)' FUZZTIME='$(FUZZTIME)' sh scripts/fuzz.sh

mutants: servers ## take away each guard of the guarantee and show that a test fails; some by ARGS='-only NAME,NAME'
	@$(GO) run ./internal/mutants $(ARGS)

faults: build servers ## break servers, networks and replicas under load, one after the other, and judge every answer; all flags by ARGS=--help
	@exec ./bin/freshet verify --stack --duration $(DURATION) $(ARGS)

kills: servers ## kill KILLS replicas at every point of their flushes of later puts: nothing is lost, doubled or out of order
	@$(GO) test ./node -run 'TestRow19Kills$$' -v -timeout 0 -kills $(KILLS) $(ARGS)

sim: ## run RUNS histories of a simulated cluster, or DURATION of them, each decided by its seed, from SEED on
	@$(GO) test ./internal/sim -run 'TestSim$$' -v -timeout 0 -seed $(SEED) $(if $(RUNS),-runs $(RUNS),-for $(DURATION))

scale: ## simulate REPLICAS=10,1000 replicas: what they cost Postgres and NATS, with and without relays, as a table
	@$(GO) test ./internal/sim/scale -run 'TestTable$$' -v -timeout 0 -replicas $(REPLICAS) $(ARGS)

rivals: servers ## compare with a cache-aside and public libraries, same faults and judge; DURATION=10m, more flags by ARGS=-h
	@cd bench && $(GO) build -buildvcs=$(BUILDVCS) -o ../bin/rivals ./rivals
	@exec ./bin/rivals $(if $(DURATION),-duration $(DURATION)) $(ARGS)

cover: servers ## measure which statements the root's tests reach; the pages are in coverage.html
	$(GO) test -timeout 10m -coverpkg=./... -coverprofile=coverage.out ./...
	@$(GO) tool cover -html=coverage.out -o coverage.html
	@$(GO) tool cover -func=coverage.out | tail -n 1

build: ## build bin/freshet
	@$(GO) build -buildvcs=$(BUILDVCS) -o bin/freshet ./cmd/freshet

servers: ## install the Redis and PostgreSQL programs that tests and `up` start themselves, where they are missing
	@sh scripts/install-servers.sh

clean: ## remove what the other targets leave behind
	rm -rf bin coverage.out coverage.html bench.out
