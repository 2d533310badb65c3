# A user and CI run the same commands.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
QUICKSTART := build/quickstart
RUN := pipelines/quickstart.yaml
UNION := pipelines/baselines/union.yaml
SCIENCE := build/science
STUDY := pipelines/studies/gap.yaml
BASELINES := union no-replay cosine english french spanish

.PHONY: docs site quickstart baselines science unit integration-tests e2e-tests coverage test test-long bench-data bench-train test-services check clean

quickstart: $(VENV)/installed  ## fetch real text, train three stages, release, compare with retraining
	$(BIN)/perennial quickstart $(QUICKSTART) --run-file $(RUN) --union $(UNION)

baselines: $(VENV)/installed  ## train the alternatives to the quickstart and compare them
	set -e; for name in $(BASELINES); do \
		for verb in run release evaluate; do \
			$(BIN)/perennial $$verb pipelines/baselines/$$name.yaml; \
		done; \
	done
	$(BIN)/perennial compare $(RUN) $(BASELINES:%=pipelines/baselines/%.yaml) --output build/quickstart/compare.html

science: $(VENV)/installed  ## run what is missing of STUDY, about 3 hours; may be stopped and repeated
	$(BIN)/python pipelines/fetch_quickstart.py $(SCIENCE)/text
	set -e; for corpus in $$(cat $(SCIENCE)/text/corpora.txt); do \
		$(BIN)/perennial land pipelines/science.yaml $$corpus $(SCIENCE)/text/$$corpus.jsonl; \
	done
	$(BIN)/perennial study $(STUDY)

unit: $(VENV)/installed-test  ## unit and property tests, which start no cluster: about 5 minutes
	# A fixed seed: both processes must collect the tests of a set in one order.
	PYTHONHASHSEED=0 $(BIN)/python -m pytest -m "not long" --numprocesses 2 tests/unit tests/property

coverage: $(VENV)/installed-test  ## the same tests, with the share of the package's lines that they reach
	PYTHONHASHSEED=0 $(BIN)/python -m pytest -m "not long" --numprocesses 2 --cov --cov-report term tests/unit tests/property

test:  ## all tests but the longest
	$(MAKE) --no-print-directory --jobs 2 --output-sync $(VENV)/installed-test test-services
	$(MAKE) --no-print-directory --jobs 2 --output-sync check unit
	# One after the other: a cluster that starts beside other tests on two cores may take too long.
	$(MAKE) --no-print-directory integration-tests
	$(MAKE) --no-print-directory e2e-tests

integration-tests: $(VENV)/installed-test
	PYTHONHASHSEED=0 $(BIN)/python -m pytest -m "not long" --numprocesses 2 --dist loadfile tests/integration

e2e-tests: $(VENV)/installed-test
	$(BIN)/python -m pytest -m "not long" tests/e2e

test-long: $(VENV)/installed-test test-services build/consumers/installed  ## the longest tests
	$(BIN)/python pipelines/fetch_smollm.py build/smollm
	$(BIN)/python -m pytest -m long

bench-data: $(VENV)/installed-test build/peers/installed  ## the data plane beside its peers, about 50 minutes
	set -e; run() { out=$$1; shift; echo "$$*"; \
		PYTHONPATH=. $(BIN)/python benchmarks/"$$@" > build/$$out.md; mv build/$$out.md benchmarks/results/; }; \
	run data_ingest data_ingest.py --peers build/peers/bin/python; \
	run data_ingest_2gb data_ingest.py --megabytes 2048 --arms tiktoken-grouped perennial; \
	run data_ingest_neox data_ingest.py --tokenizer neox; \
	run data_ingest_normalised data_ingest.py --peers build/peers/bin/python --tokenizer normalised --megabytes 16 --rounds 2; \
	run data_ingest_passes data_ingest_passes.py; \
	run data_comparing data_comparing.py; \
	run data_loader data_loader.py --peers build/peers/bin/python; \
	run data_loader_s3 data_loader.py --peers build/peers/bin/python --s3 --sequences 1024; \
	run data_resume data_resume.py --peers build/peers/bin/python; \
	run data_planner data_planner.py; \
	run data_packing data_packing.py; \
	run repeats repeats.py; \
	run data_checks data_checks.py; \
	run scale scale.py

bench-train: $(VENV)/installed-test  ## the training loop beside others, its memory and its numbers, about 50 minutes
	mkdir -p build
	for name in train_speed train_restart peer_copy warm_trunk memory correctness; do \
		$(BIN)/python benchmarks/$$name.py > build/$$name.md \
			&& mv build/$$name.md benchmarks/results/ || exit 1; \
	done

docs: $(VENV)/installed  ## write the generated reference pages and the schemas for editors; build the site
	$(BIN)/python -m perennial.config.reference .
	$(BIN)/python -m perennial.cli.reference .
	$(BIN)/python -m perennial.corpora.formats.reference .
	$(MAKE) --no-print-directory site

site: build/docs/installed  ## the documentation in build/site, which needs no network; a warning is an error
	NO_MKDOCS_2_WARNING=1 build/docs/bin/python -m mkdocs build --quiet --strict

check: $(VENV)/installed-test  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-services:  ## real S3, PostgreSQL and a browser for the tests, where Debian's packages can be had
	@sh tests/support/install_services.sh

$(VENV)/installed: pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

build/docs/installed: pyproject.toml
	test -d build/docs || $(PYTHON) -m venv build/docs || python3 -m venv build/docs
	build/docs/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	build/docs/bin/python -m pip install --quiet --group docs
	touch $@

build/peers/installed:
	test -d build/peers || $(PYTHON) -m venv build/peers || python3 -m venv build/peers
	build/peers/bin/pip install --quiet torch==2.13.0 numpy psutil lightning-utilities boto3 Brotli \
		python-snappy zstd xxhash requests tifffile obstore pillow catalogue tqdm filelock \
		datasets==5.2.0 datatrove==0.10.1 tokenizers==0.23.3 orjson humanize
	build/peers/bin/pip install --quiet --no-deps mosaicml-streaming==0.13.0 litdata==0.2.76
	touch $@

build/consumers/installed:  # programs that read releases; llama-cpp-python is compiled, about 20 minutes
	test -d build/consumers || $(PYTHON) -m venv build/consumers || python3 -m venv build/consumers
	build/consumers/bin/pip install --quiet torch==2.13.0 transformers==4.57.6 ctranslate2==4.8.5 \
		llama-cpp-python==0.3.36
	touch $@

clean:  ## delete the quickstart's run; the text that it fetched stays
	rm -rf $(QUICKSTART)/store $(BASELINES:%=$(QUICKSTART)/%)
