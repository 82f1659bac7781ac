# Targets for people: build, test, demo, install. The others are for those who work on Mover; .ci/run runs what must pass.
SHELL := /bin/bash
GO ?= go
PREFIX ?= /usr/local
RUNS ?= 500
SEED ?= 1
# A count, not a time: at the end of a time, go test now and then reports the deadline itself as a failure.
FUZZTIME ?= 5000x
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

version := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
go_build := CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags "-s -w -X github.com/moverd/mover/internal/version.value=$(version)"

# What tests and the demo run besides Go: mkfs and fsck of each filesystem, mount, partitions, cmp. The race detector needs gcc.
# The databases are for the hooks, Ceph for objects.
test_packages := e2fsprogs xfsprogs btrfs-progs dosfstools fdisk util-linux diffutils gcc libc6-dev prometheus qemu-utils nbdkit libnbd-bin \
  postgresql mariadb-server redis-server ceph-mon ceph-osd ceph-common radosgw
bench_packages := nbdkit libnbd-bin restic rsync zstd fio socat iproute2 rclone
e2e_packages := qemu-system-x86 mmdebstrap zstd lvm2 xfsprogs
generate_packages := clang-14 llvm-14 libbpf-dev

.DEFAULT_GOAL := build
.PHONY: build test demo lint generate monitoring soak histories bench bench-quick perf e2e e2e-server install install-files completions deb clean deps deps-generate fuzz

build:
	$(go_build) -o bin/ ./cmd/...

# deps installs missing Debian packages. With nothing missing it only looks.
deps:
	@.ci/deps $(test_packages)

deps-generate:
	@.ci/deps $(generate_packages)

# Root is needed: the tests make loop devices, mount, freeze and load eBPF. Folders that are already mounted are left alone.
test: deps
	@if [ "$$(id -u)" != 0 ]; then echo "make test: needs root: it makes loop devices, mounts, freezes filesystems and loads eBPF programs" >&2; exit 1; fi
	.ci/mounts
	$(GO) vet ./...
	$(GO) test -race -timeout 20m -p 2 ./...
	$(MAKE) fuzz

# Random histories of a flow, many more than make test runs: HISTORIES of them, from SEED on.
HISTORIES ?= 300
histories: deps
	@.ci/mounts
	$(GO) test -race -timeout 60m ./internal/flowtest -run TestHistories -histories $(HISTORIES) -seed $(SEED)

# Each fuzz target of the tree for a few seconds; the corpus under testdata runs in every test.
fuzz:
	@set -e; for dir in $$(grep -rlE '^func Fuzz' --include='*_test.go' . | xargs -n1 dirname | sort -u); do \
	  for name in $$(grep -hoE '^func Fuzz[A-Za-z0-9_]+' $$dir/*_test.go | cut -c6-); do \
	    echo "fuzz $$dir $$name $(FUZZTIME)"; $(GO) test $$dir -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) -parallel 2 >/tmp/mover-fuzz.$$$$ 2>&1 || { cat /tmp/mover-fuzz.$$$$; rm -f /tmp/mover-fuzz.$$$$; exit 1; }; rm -f /tmp/mover-fuzz.$$$$; \
	  done; done

demo: deps build
	@if [ "$$(id -u)" != 0 ]; then echo "make demo: needs root: it makes a loop disk, mounts it and loads eBPF programs" >&2; exit 1; fi
	@.ci/mounts
	bin/moverbench demo

lint:
	@out=$$(gofmt -l .); if [ -n "$$out" ]; then echo "gofmt: $$out" >&2; exit 1; fi
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...
	$(GO) test ./internal/lint

# The compiled eBPF objects are committed; this makes them again, byte for byte with the same clang.
generate: deps-generate
	$(GO) generate ./...

monitoring: deps build
	@.ci/mounts
	bin/moverbench monitoring

soak: deps build
	@.ci/mounts
	bin/moverbench soak --runs $(RUNS) --seed $(SEED) --parallel 3 --results bench/results/soak.jsonl

# What moves over a line, and buckets, in less than 30 minutes on 2 cores that do nothing else; bench-quick in less than 3. No repetition begins that would exceed
# the time; how many there were stands in the results. LINE adds options to all of it, which replace these. The older measurements, at their full size: perf.
LINE ?=
bench: deps build
	@.ci/deps $(bench_packages)
	@.ci/mounts
	bin/moverbench line full --rate 0 --peers nbdcopy,restic --within 7m --results bench/results/line-full.jsonl $(LINE)
	bin/moverbench line full --rate 1Gbit/s,200Mbit/s,50Mbit/s --peers restic --span 20s --within 5m --results bench/results/line-rates.jsonl $(LINE)
	bin/moverbench line levels --usr 1GiB --span 5s --within 4m --results bench/results/line-levels.jsonl $(LINE)
	bin/moverbench line stages twin scale pause distance cores --usr 1GiB --twins clone,layout,inodes --rate 200Mbit/s --span 15s --within 6m --results bench/results/line-rest.jsonl $(LINE)
	bin/moverbench bucket compare --within 6m --results bench/results/bucket.jsonl
	bin/moverbench table bench/results > bench/results/README.md
	bin/moverbench picture bench/results > bench/results/bench.svg

bench-quick: deps build
	@.ci/deps $(bench_packages)
	@.ci/mounts
	@rm -rf bin/quick
	bin/moverbench line stages full twin scale pause distance --usr 1GiB --rate 0,200Mbit/s --peers nbdcopy,restic --span 4s --twins clone,layout --sizes 1GiB,4GiB \
	  --pause 200Mbit/s:10MB/s --spread 256MiB --repeat 1 --results bin/quick/line.jsonl $(LINE)
	bin/moverbench bucket compare --objects 1000 --large 2 --large-size 64MiB --repeat 1 --results bin/quick/bucket.jsonl
	bin/moverbench table bin/quick > bin/quick/README.md
	bin/moverbench picture bin/quick > bin/quick/bench.svg
	@cat bin/quick/README.md

perf: deps build
	@.ci/deps $(bench_packages)
	@.ci/mounts
	bin/moverbench perf
	bin/moverbench table bench/results > bench/results/README.md
	bin/moverbench picture bench/results > bench/results/bench.svg

# Disks of every kind inside guests of other kernels, then a whole server.
e2e: deps build
	@.ci/deps $(e2e_packages)
	e2e/run
	$(MAKE) e2e-server

# CASES: plain; cut: power; lvm: root on it; lvmcut: both in one. E2E_KEEP=1 keeps consoles and disks.
CASES ?= plain lvmcut
e2e-server: deps build
	@.ci/deps $(e2e_packages)
	@rm -f bin/mover_*.deb
	$(MAKE) -s deb
	e2e/server $(CASES)

# What install puts where. The lists of units, pages and hooks are what there is in the folders.
DOCDIR ?= $(PREFIX)/share/doc/mover
install: build completions
	@$(MAKE) --no-print-directory install-files

# The three shells' completions, made by the programs themselves.
completions: build
	@mkdir -p bin/completions
	@for program in moverd moverctl; do \
	  bin/$$program completion bash >bin/completions/$$program; bin/$$program completion zsh >bin/completions/_$$program; \
	  bin/$$program completion fish >bin/completions/$$program.fish; done

install-files:
	install -Dm755 -t $(DESTDIR)$(PREFIX)/sbin bin/moverd
	install -Dm755 -t $(DESTDIR)$(PREFIX)/bin bin/moverctl
	for section in 1 5 7 8; do for page in man/*.$$section; do [ ! -e $$page ] || install -Dm644 -t $(DESTDIR)$(PREFIX)/share/man/man$$section $$page; done; done
	install -Dm644 -t $(DESTDIR)$(PREFIX)/share/bash-completion/completions bin/completions/moverd bin/completions/moverctl
	install -Dm644 -t $(DESTDIR)$(PREFIX)/share/zsh/site-functions bin/completions/_moverd bin/completions/_moverctl
	install -Dm644 -t $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d bin/completions/moverd.fish bin/completions/moverctl.fish
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	for unit in systemd/*.service systemd/*.timer; do [ ! -e $$unit ] || \
	  sed 's|/usr/local/|$(PREFIX)/|g' $$unit >$(DESTDIR)$(PREFIX)/lib/systemd/system/$$(basename $$unit); done
	install -Dm644 -t $(DESTDIR)$(DOCDIR) README.md docs/*.md
	for file in docs/examples/* monitoring/*; do install -Dm644 -t $(DESTDIR)$(DOCDIR)/examples $$file; done
	for hook in hooks/*; do [ ! -f $$hook ] || install -Dm$$([ -x $$hook ] && echo 755 || echo 644) -t $(DESTDIR)$(PREFIX)/share/mover/hooks $$hook; done

# A Debian package of what is built: bin/mover_VERSION_ARCH.deb.
deb: build completions
	packaging/deb/build bin

clean:
	rm -rf bin
	$(GO) clean -testcache
