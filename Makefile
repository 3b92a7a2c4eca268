# `make run`, `make test`, `make check`, `make bench` and so on make the virtual environment themselves; `ARGS` goes to the program:
# make run ARGS="--backend trio"

SHELL := /bin/bash
.DEFAULT_GOAL := run

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=

# What is imported is compiled once, whatever the caller's habit: the tests start hundreds of processes.
unexport PYTHONDONTWRITEBYTECODE

# The newest interpreter on the path, unless one is named: make PYTHON=/opt/python3.13/bin/python3
PYTHON ?= $(shell for name in python3.13 python3.12 python3.11 python3; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$name; break; }; done)

# One worker more than cores, up to four: some tests wait for real time, or for a child. `make test` and `make coverage` share it.
PARALLEL = --numprocesses $(shell cores=$$(getconf _NPROCESSORS_ONLN); echo $$((cores < 4 ? cores + 1 : 4))) --dist worksteal

.PHONY: run test test-store rewritten coverage check bench bench-full bench-docs screenshots bounds format clean torture-cluster torture-planted docs package

run: $(STAMP)
	@$(BIN)/lanes run $(ARGS)

test: $(STAMP)
	@$(MAKE) --no-print-directory --jobs 2 check rewritten
	$(BIN)/pytest $(PARALLEL) $(ARGS)

# The tests of lanes and supervisors once more, with sessions on PostgreSQL: ten minutes. Those that no store has part in are
# named in tests/on_store.py; ARGS="--store cold" takes each session by a round trip of its own.
ON_STORE := tests/lanes $(addprefix tests/runtime/test_,$(addsuffix .py,limits metrics refusals restart run_report selfcheck \
	supervisor_left supervisor_life trace unhealthy wait_reports watchdog))
test-store: $(STAMP)
	$(BIN)/pytest --store postgres $(PARALLEL) $(ON_STORE) $(ARGS)

# Assertions of a fresh checkout are rewritten once, beside mypy, and not by each worker of pytest again.
rewritten: $(STAMP)
	-@$(BIN)/pytest --collect-only -qq > /dev/null 2>&1

# Without the planted defects: what they run is not the product.
coverage: $(STAMP)
	COVERAGE_CORE=ctrace $(BIN)/pytest $(PARALLEL) --ignore-glob='*planted*' --cov=lanes --cov=locks --cov=runtime --cov-branch \
		--cov-report=term-missing:skip-covered $(ARGS)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Several processes on one PostgreSQL are killed, stopped and cut off for ten minutes: ARGS="--seconds 3600 --seed 7".
torture-cluster: $(STAMP)
	@$(BIN)/python -m tests.postgres.torture $(ARGS)

# Each defect that the judge must see is planted until it does.
torture-planted: $(STAMP)
	@$(BIN)/python -m tests.postgres.torture --planted $(ARGS)

# The documentation site, in site/index.html: about ten seconds; a warning is a failure. `python -m http.server -d site` shows
# it with its search. The variable silences a notice about another program.
docs: $(STAMP) $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --clean $(ARGS)

# Wheel and sdist, built and tried as users have them, with each Python that there is: about five minutes.
package: $(STAMP)
	@$(BIN)/python -m tests.package $(ARGS)

$(VENV)/.docs: $(STAMP)
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[docs]'
	@touch $@

# Compares locks and lanes with those of other libraries, in at most five minutes; the pictures are in bench.html.
bench: $(STAMP)
	@$(BIN)/lanes bench --html bench.html $(ARGS)

# Larger sizes, longer and more often, with instruction counts: about an hour.
bench-full: $(STAMP)
	@$(BIN)/lanes bench --full --html bench.html $(ARGS)

# The repository's own figures against their bounds.
bounds: $(STAMP)
	@failed=0; for suite in $(or $(ARGS),locks lanes reading imports process gateway foreign); do $(BIN)/python -m benchmarks $$suite || failed=1; done; exit $$failed

# The figures, the pictures and the table of docs/benchmarks.md. Takes about an hour; nothing else should run meanwhile.
DOCS := docs/benchmarks
bench-docs: $(STAMP)
	mkdir -p $(DOCS)
	rm -f $(DOCS)/bounds-*.json
	$(BIN)/lanes bench --full --budget 2400 --json $(DOCS)/bench.json --pictures $(DOCS) $(ARGS)
	for suite in locks lanes path reading imports process gateway foreign; do \
		$(BIN)/python -m benchmarks $$suite $(DOCS)/bounds-$$suite.json; test -s $(DOCS)/bounds-$$suite.json || exit 1; done
	$(BIN)/python -m benchmarks.document

# The pictures of the dashboard in the README. Needs Chromium; takes half a minute.
screenshots: $(STAMP)
	@$(BIN)/python -m tests.web.screenshots docs/dashboard

# Three gateways that share their sessions on a PostgreSQL of their own: killed, restarted, cut off. About 45 seconds.
cluster: $(STAMP)
	@$(BIN)/python -m examples.cluster.local $(ARGS)

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage build dist site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The build server tests the examples with their frameworks, which a developer need not have: make .venv/.frameworks
EXTRAS := dev$(if $(LANES_CI),$(shell echo ,)frameworks)

$(VENV)/.frameworks: $(STAMP)
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[frameworks]'
	@touch $@

# The stamp comes last: an installation that was interrupted is done again.
$(STAMP): pyproject.toml
	@if [ -z "$(PYTHON)" ]; then echo "error: session-lanes needs Python 3.11 or newer; none is on the path" >&2; exit 1; fi
	@"$(PYTHON)" -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and \
		"error: session-lanes needs Python 3.11 or newer, and this is %d.%d" % v[:2])'
	@rm -f $@
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[$(EXTRAS)]'
	@touch $@
