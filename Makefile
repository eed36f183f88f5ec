# The two commands are `make run` and `make test`.
CORES ?= 2
# Of findings. A job that waits for its worker needs no core; with few jobs all may wait for the same worker.
JOBS ?= $(shell expr 3 \* $$(getconf _NPROCESSORS_ONLN))
ARGS ?=
# Configuration files of a run that is not the default one: make run CONFIG=config/paper.yaml
CONFIG ?=
# One of the models of the findings; all if empty.
MODEL ?=
ROUNDS ?= 50
SECONDS ?= 1800
IN_VENV := PATH="$(CURDIR)/.venv/bin:$$PATH"
CONFIGURED := $(if $(CONFIG),--configfile $(CONFIG))
# Where the results of that run are; empty if no run can have its name, which the script says.
FOLDER := $(if $(CONFIG),$$($(IN_VENV) python workflow/scripts/results_folder.py $(CONFIG)),results)

.PHONY: help run findings test chaos lint format report verify compare lock audit fuzz clean

help: ## lists the commands
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

# What Snakemake says to type in order to go on.
run: export KVFIDELITY_COMMAND = make run$(if $(CONFIG), CONFIG="$(CONFIG)")$(if $(ARGS), ARGS="$(ARGS)")
run: .venv/installed ## the default run: results/report.html; CONFIG=FILE for another
	@$(IN_VENV) snakemake --cores $(CORES) $(ARGS) $(CONFIGURED)

# One run after the other: a run that is stopped goes on where it was, a finished one has nothing to do.
findings: export KVFIDELITY_COMMAND = make findings$(if $(MODEL), MODEL=$(MODEL))
findings: .venv/installed ## all runs of docs/findings.md on one GPU, their tables and the page; MODEL=NAME for one model's, JOBS=24 for as many at once
	@export $(IN_VENV); runs=$$(python -m kvfidelity.findings.plan --model "$(MODEL)") || exit 2; \
	echo "$$runs" | while read -r finding model folder files; do \
	snakemake --cores $(JOBS) --resources gpu=1 $(ARGS) --configfile $$files </dev/null && \
	python workflow/scripts/export_finding.py "$$folder" --finding "$$finding" || exit 1; done
	@$(IN_VENV) python -m kvfidelity.findings.page --draw
	@$(IN_VENV) python -m kvfidelity.findings.page > docs/findings.md.new && mv docs/findings.md.new docs/findings.md

test: .venv/installed ## all tests, two at a time; ARGS="-n 0 -x" for one by one
	@$(IN_VENV) python -m pytest -n 2 --dist worksteal $(ARGS)

chaos: .venv/installed ## 50 rounds of kills, full disks and damage (about an hour); ROUNDS=10 for fewer
	@test "$(ROUNDS)" -gt 0 2>/dev/null || { echo "usage: make chaos ROUNDS=10, a number above 0" >&2; exit 2; }
	@$(IN_VENV) KVFIDELITY_CHAOS_ROUNDS=$(ROUNDS) python -m pytest tests/workflow/test_chaos.py tests/worker/test_chaos.py $(ARGS)

lint: .venv/installed ## style, types, workflow rules
	@$(IN_VENV) ruff check . && $(IN_VENV) ruff format --check .
	@$(IN_VENV) snakefmt --check Snakefile workflow/rules
	@$(IN_VENV) mypy
	@$(IN_VENV) snakemake --lint

format: .venv/installed ## format the code
	@$(IN_VENV) ruff check --fix --quiet . ; $(IN_VENV) ruff format . ; $(IN_VENV) snakefmt Snakefile workflow/rules

report: .venv/installed ## Snakemake's own report, results/snakemake-report.zip; CONFIG=FILE for another run's
	@folder=$(FOLDER); test -n "$$folder" || exit 2; \
	test -e "$$folder/report.html" || { echo "usage: make report [CONFIG=FILE], after make run with the same CONFIG: there is no $$folder/report.html yet" >&2; exit 2; }; \
	$(IN_VENV) snakemake --cores $(CORES) --report "$$folder/snakemake-report.zip" $(CONFIGURED)

verify: .venv/installed ## names damaged and stale artifacts; ARGS=--remove moves them aside; CONFIG=FILE for another run's
	@folder=$(FOLDER); test -n "$$folder" || exit 2; \
	test -d "$$folder" || { echo "usage: make verify [CONFIG=FILE], after make run with the same CONFIG: there is no folder $$folder yet" >&2; exit 2; }; \
	$(IN_VENV) python workflow/scripts/verify.py $(ARGS) $(CONFIGURED)

compare: .venv/installed ## compare two finished runs, by name or folder: make compare default field
	@test -n "$(A)" -a -n "$(B)" || { echo "usage: make compare A B, the names or folders of two runs" >&2; exit 2; }
	@$(IN_VENV) python workflow/scripts/compare.py "$(A)" "$(B)"

lock: ## write requirements.lock and envs/build.lock, with hashes, from what .venv holds
	@envs/lock.sh

audit: .venv/installed ## known vulnerabilities of the locked versions; asks the package registry about each
	@.venv/bin/python -m venv .venv/audit && .venv/audit/bin/pip install --quiet pip-audit==2.10.1
	@.venv/audit/bin/pip-audit --require-hashes --disable-pip -r requirements.lock

fuzz: .venv/installed ## random and damaged answers, model folders, store lines, records, messages; SECONDS=1800
	@$(IN_VENV) python tests/fuzz/run.py --seconds $(SECONDS) $(ARGS)

clean: ## remove the results of all runs, keep downloads and paid verdicts
	rm -rf results logs

.venv/installed: requirements.lock envs/build.lock envs/torch.txt pyproject.toml
	@sha256sum --check --quiet --status .venv/installed 2>/dev/null && touch .venv/installed || envs/install.sh

# `make compare A B` names two runs, not two more targets.
ifeq (compare,$(firstword $(MAKECMDGOALS)))
NAMES := $(wordlist 2,3,$(MAKECMDGOALS))
A ?= $(word 1,$(NAMES))
B ?= $(word 2,$(NAMES))
$(foreach name,$(NAMES),$(eval $(name): ; @:))
endif

# A name that is no target, such as `make tests`.
.DEFAULT:
	@echo "usage: make TARGET; there is no target $@, make help lists them" >&2; exit 2
