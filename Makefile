# The commands of a person and of CI are the same.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
QUICKSTART := build/quickstart
RUN := pipelines/quickstart.yaml

.PHONY: quickstart test test-services check clean

quickstart: $(VENV)/installed  ## fetch real text, train three stages, release, evaluate
	$(BIN)/python pipelines/fetch_quickstart.py $(QUICKSTART)/text
	set -e; for corpus in $$(cat $(QUICKSTART)/text/corpora.txt); do \
		$(BIN)/perennial land $(RUN) $$corpus $(QUICKSTART)/text/$$corpus.jsonl; \
		$(BIN)/perennial watch $(RUN) --once; \
	done
	$(BIN)/perennial release $(RUN)
	$(BIN)/perennial evaluate $(RUN)
	$(BIN)/perennial status $(RUN)

test: $(VENV)/installed-test test-services check  ## everything under 20 minutes
	$(BIN)/python -m pytest -m "not long"

check: $(VENV)/installed-test  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-services:  ## a real S3 server for the tests, where Debian's packages can be had; moto otherwise
	@sh tests/install_services.sh

$(VENV)/installed: pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

clean:  ## forget the quickstart's run; the text that it fetched stays
	rm -rf $(QUICKSTART)/store
