# make demo: fine-tune on real data, explain, open the report.    make test: the tests.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
RUN    := runs/movielens_100k

.PHONY: help install demo test check bench clean

help:
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

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

bench: install ## repeat the benchmarks of docs/benchmarks but the peers' (some hours)
	$(BIN)/python scripts/benchmark_readers.py
	$(BIN)/python scripts/benchmark_rendering.py
	$(BIN)/python scripts/benchmark_demo.py
	$(BIN)/python scripts/benchmark_batch.py --model $(RUN)
	$(BIN)/python scripts/benchmark_faithfulness.py --model $(RUN) --work runs/faithfulness
	$(BIN)/python scripts/benchmark_million_items.py
	$(BIN)/python scripts/benchmark_cache.py --threads 1
	$(BIN)/python scripts/benchmark_adapters.py --layers 3
	$(BIN)/python scripts/benchmark_event_dropout.py --layers 3
	$(BIN)/python scripts/benchmark_training_speed.py
	$(BIN)/python scripts/benchmark_ablations.py
	$(BIN)/python scripts/benchmark_learning.py --seeds 0 1 2
	$(BIN)/python scripts/benchmark_low_labels.py
	$(BIN)/python scripts/benchmark_cold_items.py --layers 3
	$(BIN)/python scripts/benchmark_knowledge_graph.py
	$(BIN)/python scripts/benchmark_warm_update.py
	$(BIN)/python scripts/benchmark_analysis_scale.py
	$(BIN)/python scripts/benchmark_debiasing.py
	$(BIN)/python scripts/benchmark_fairness.py
	$(BIN)/python scripts/benchmark_vulnerability.py
	$(BIN)/python scripts/benchmark_campaign_attribution.py --stage planted
	$(BIN)/python scripts/benchmark_campaign_attribution.py --stage redemption

clean: ## remove the environment and everything made here
	rm -rf $(VENV) runs .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
