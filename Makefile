# make demo: fine-tune on real data, explain, write the report.    make test: the tests.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
RUN    := runs/movielens_100k

.PHONY: help install demo test test-all check docs bench clean

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(BIN)/.installed ## create .venv and install the library with everything it can use

$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: install ## fine-tune on MovieLens-100K, evaluate, explain, write the report (3 to 10 minutes)
	$(BIN)/llm-influence demo --output $(RUN)

test: install ## run the tests, without the slow ones
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-all: install ## run all tests
	$(BIN)/python -m pytest -n 2

check: install ## lint, format, types, import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: install ## build the documentation site, strictly, in site/
	$(BIN)/python -m benchmarks.docs_pages.reference
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

bench: install ## repeat the benchmarks of docs/benchmarks but the peers' (some hours)
	$(BIN)/python -m benchmarks.data.readers
	$(BIN)/python -m benchmarks.data.rendering
	$(BIN)/python -m benchmarks.prediction.demo
	$(BIN)/python -m benchmarks.attribution.batch --model $(RUN)
	$(BIN)/python -m benchmarks.faithfulness.ml100k --model $(RUN) --work runs/faithfulness
	$(BIN)/python -m benchmarks.training.million_items
	$(BIN)/python -m benchmarks.attribution.cache --threads 1
	$(BIN)/python -m benchmarks.training.adapters --layers 3
	$(BIN)/python -m benchmarks.training.event_dropout --layers 3
	$(BIN)/python -m benchmarks.training.speed
	$(BIN)/python -m benchmarks.training.ablations
	$(BIN)/python -m benchmarks.training.learning --seeds 0 1 2
	$(BIN)/python -m benchmarks.training.low_labels
	$(BIN)/python -m benchmarks.prediction.cold_items --layers 3
	$(BIN)/python -m benchmarks.prediction.knowledge_graph
	$(BIN)/python -m benchmarks.training.continual
	$(BIN)/python -m benchmarks.analysis.scale
	$(BIN)/python -m benchmarks.training.debiasing
	$(BIN)/python -m benchmarks.analysis.fairness
	$(BIN)/python -m benchmarks.faithfulness.vulnerability
	$(BIN)/python -m benchmarks.analysis.campaigns --stage planted
	$(BIN)/python -m benchmarks.analysis.campaigns --stage redemption

clean: ## remove the environment and everything made here
	rm -rf $(VENV) runs site .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
