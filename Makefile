# Copyright: lvs.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
#
# The one entry point: `make help`. Everything that is made or cached lies in .build/.

.DEFAULT_GOAL := help
.NOTPARALLEL:

build := $(CURDIR)/.build

# Version managers' shims stay out of PATH: they exist for interpreters that are not installed, and Ansible picks those.
export PATH := $(build)/venv/bin:$(shell printf '%s' "$$PATH" | tr ':' '\n' | grep -v '/shims$$' | paste -s -d ':'):/usr/sbin:/sbin
export PYTHONDONTWRITEBYTECODE := 1
export ANSIBLE_HOME := $(build)/ansible
export ANSIBLE_COLLECTIONS_PATH := $(build)
export ANSIBLE_PYTHON_INTERPRETER := /usr/bin/python3
export MOLECULE_EPHEMERAL_DIRECTORY := $(build)/molecule
export HYPOTHESIS_STORAGE_DIRECTORY := $(build)/hypothesis
unexport ANSIBLE_CONFIG PYTHONHOME PYTHONPATH VIRTUAL_ENV

# What uses the lab's fleet enters its network namespaces.
as_root := $(if $(filter-out 0,$(shell id -u)),sudo -E env "PATH=$$PATH")

# The name holds the checkout's path, because a virtual environment that was moved does not work.
ready := .build/venv/ready-$(shell pwd | cksum | tr ' ' '-')
step := @tests/tools/step

# What is tried on the newer Debian as well, in a few minutes: tests that look at what its kernel and its tools say.
newer_ipvs := $(patsubst %,tests/integration/bench/test_%.py,\
	loading stock_tools ipvs_service services info)
newer_marks := $(patsubst %,tests/integration/marks/test_%.py,marks nftables surroundings)

# The unit tests that Ansible itself takes part in.
of_ansible = $(shell grep -rlE '^from (ansible[. ]|.*(unit\.running|plugins\.(modules|filter|lookup))\b)' \
	tests/unit --include='test_*.py')

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1	/p' Makefile | expand -t 14

.PHONY: demo
demo: $(ready) ## the product at work on a fleet of virtual routers
	$(step) demo $(as_root) tests/demo/run

.PHONY: test
test: $(ready) ## all of the following up to versions, in two lanes side by side
	$(step) test tests/tools/lanes 'lint build unit browser integration' 'VERSIONS=ends sanity molecule versions fresh'

.PHONY: lint
lint: $(ready) ## style, types, shell, licence headers, sandboxes, documentation, changelog, execution environment
	$(step) 'lint: yamllint' yamllint --strict .
	$(step) 'lint: ruff check' ruff check --quiet
	$(step) 'lint: ruff format' ruff format --quiet --diff
	$(step) 'lint: mypy' mypy -p ansible_collections.lvs.fleet.plugins.module_utils
	$(step) 'lint: shellcheck' tests/tools/shellcheck
	$(step) 'lint: licence headers' tests/tools/spdx
	$(step) 'lint: sandboxes of the units' tests/tools/sandboxes
	$(step) 'lint: changelog' antsibull-changelog lint
	$(step) 'lint: documentation' antsibull-docs lint-collection-docs \
		--plugin-docs --validate-collection-refs=all --check-extra-docs-refs --skip-rstcheck .
	$(step) 'lint: execution environment' tests/tools/ee
	$(step) 'lint: ansible-lint' ansible-lint --nocolor $(LINTED)

.PHONY: build
build: $(ready) .build/importer ## the collection as .build/dist/*.tar.gz, installed, tried, and shown to Galaxy's importer
	$(step) build python tests/tools/build.py

.PHONY: sanity
sanity: $(ready) ## ansible-test sanity of the oldest and the newest ansible-core, on every Python from 3.8 on that is here
	$(step) sanity python tests/tools/versions.py with tests/tools/ansible-test sanity --skip-test changelog $(SANITY)

.PHONY: unit
unit: $(ready) ## the pure core and the modules on a fake kernel
	$(step) unit pytest -q --cov=plugins --cov-report=term $(or $(UNIT),tests/unit)
ifndef UNIT
	$(step) 'unit: oldest and newest ansible-core' python tests/tools/versions.py with \
		python -m pytest -q --hypothesis-profile=few $(of_ansible)
endif

.PHONY: browser
browser: $(ready) ## the page of lvs.fleet.status in a browser; SCREENSHOTS=docs/images keeps pictures of it there
	@tests/tools/need chromium fonts-dejavu-core >/dev/null
	$(step) browser env SCREENSHOTS=$(SCREENSHOTS) pytest -q $(or $(BROWSER),tests/browser)

.PHONY: integration
ifdef RELEASE
integration: ## the modules on a real kernel with IPVS; RELEASE=trixie has that kernel and Debian 13
	$(step) 'integration: $(RELEASE)' tests/lab/lab root --release $(RELEASE) -- \
		make integration IPVS='$(IPVS)' MARKS='$(MARKS)'
else
integration: $(ready)
	@tests/tools/need iptables nftables iproute2 kmod >/dev/null
	$(step) 'integration: IPVS' tests/lab/lab bench -- python -m pytest -q $(or $(IPVS),tests/integration/bench)
	$(step) 'integration: marks, on the own kernel' $(as_root) python -m pytest -q $(or $(MARKS),tests/integration/marks)
endif

.PHONY: fresh
fresh: ## the others with little of their work on a Debian that has nothing; some of integration on Debian 13
	$(step) 'fresh: Debian 12' tests/lab/lab root --release bookworm -- tests/tools/fresh
	$(step) 'fresh: Debian 13' $(MAKE) --no-print-directory integration RELEASE=trixie \
		IPVS='$(newer_ipvs)' MARKS='$(newer_marks)'

.PHONY: molecule
molecule: $(ready) ## the roles and playbooks on a fleet of virtual routers
	$(step) molecule $(as_root) molecule test $(or $(SCENARIO),--all)

.PHONY: versions
versions: $(ready) ## the collection with each ansible-core that it supports; VERSIONS=ends for the oldest and the newest
	$(step) versions $(as_root) python tests/tools/versions.py $(or $(VERSIONS),all)

.PHONY: fuzz
fuzz: $(ready) .build/fuzzer ## any bytes at all for all that reads input, RUNS=10000 inputs for each, from SEED=1 on
	$(step) fuzz python tests/fuzz/run.py $(or $(RUNS),10000) $(or $(SEED),1)

.PHONY: soak
soak: $(ready) ## random changes, accidents and failures on a real kernel, for MINUTES=5; SEED= repeats them
	$(step) soak env MINUTES=$(or $(MINUTES),5) SEED=$(SEED) \
		tests/lab/lab bench -- python -m pytest -q -s tests/integration/bench/test_soak.py

.PHONY: bench
bench: $(ready) ## the product measured beside its peers, in 20 minutes (tests/bench/README.md)
	$(step) bench $(as_root) tests/bench/run

.PHONY: venv
venv: $(ready) ## only what the others need: .build/venv

.PHONY: pins
pins: $(ready) ## tests/requirements.txt anew, from tests/requirements.in
	@tests/tools/pins

.PHONY: clean
clean: ## end a running fleet and remove .build/
	@test ! -d .build/lab || tests/lab/lab fleet down
	@rm -rf .build 2>/dev/null || $(as_root) rm -rf .build

# Apart from the other tools, because it takes older versions of what they need.
.build/importer: tests/importer/requirements.txt | $(ready)
	$(step) 'build: galaxy-importer' sh -c 'uv venv --quiet --clear $@ && \
		UV_COMPILE_BYTECODE=1 uv pip install --quiet --python $@ --requirement $<'
	@touch $@

# Apart from the other tools, because nothing else needs it.
.build/fuzzer: tests/fuzz/requirements.txt | $(ready)
	$(step) 'fuzz: atheris' pip --quiet --disable-pip-version-check install --upgrade --target $@ --requirement $<
	@touch $@

$(ready): tests/requirements.txt tests/tools/setup
	$(step) venv tests/tools/setup
	@touch $@
