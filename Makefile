# Everything a person runs. Needs Python 3.11 or newer, and git.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# What an installation is built from, besides the Python sources.
BUILD = setup.cfg setup.py $(wildcard backends/native/*.cpp backends/native/*.h backends/native/*.inc)
PIP = $(BIN)/pip --disable-pip-version-check --quiet
CAPTURE_PIP = .venv-capture/bin/pip --disable-pip-version-check --quiet

.PHONY: demo test lint types unit attack bench-structure bench-precision bench-gate bench-rolling bench-probe bench-tables bench-heads bench-pruning bench-native bench-requests bench-h100 bench-without-data bench-pipeline bench-comparison fuzz-models conformance bench-forms bench-placement bench-baselines interactions gpu-check docs-backends capture-suite clean

# Trains a small DLRM on real data, optimizes it for this CPU, prints and saves the result.
demo: $(VENV)/demo
	$(BIN)/python examples/demo.py

# Lints, type-checks and runs every test.
test: lint types unit

lint: $(VENV)/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The root is the package rankc; mypy sees it under that name through a link.
types: $(VENV)/test
	mkdir -p build/types
	ln -sfn ../.. build/types/rankc
	cd build/types && ../../$(BIN)/mypy --config-file rankc/setup.cfg

unit: $(VENV)/test
	$(BIN)/python -m pytest --numprocesses logical --dist worksteal $(PYTEST)

# Kills, hostile folders and files, and plans of native operators under sanitizers; 40 minutes.
attack: $(VENV)/test
	$(BIN)/python tests/attack/at_length.py $(ATTACK)

# Ours beside the peers in fp32 over the whole zoo; about half an hour on a quiet machine.
bench-structure: $(VENV)/bench
	$(BIN)/python benchmarks/structure.py $(BENCH)

# Ours beside the peers on trained models, each judged by the same gate; two minutes a model and seed.
bench-precision: $(VENV)/bench
	$(BIN)/python benchmarks/precision.py $(BENCH)

# How often the gate passes what it mustn't, and what is sound; an hour, goes on where it was stopped.
bench-gate: $(VENV)/test
	$(BIN)/python benchmarks/gate.py $(BENCH)

# Whether verdicts hold on the flights of the month after, and the census of the year after; an hour,
# goes on where it was stopped.
bench-rolling: $(VENV)/test
	$(BIN)/python benchmarks/rolling_origin.py $(BENCH)

# Each native operator and whole models, with the library and without; some twenty minutes.
bench-native: $(VENV)/bench
	$(BIN)/python benchmarks/native.py $(BENCH)

# How long probing and placing take, and what tables weigh; five minutes.
bench-probe: $(VENV)/test
	$(BIN)/python benchmarks/probe.py $(BENCH)

# Tables in few bits, with hot rows wider, and placed; four minutes.
bench-tables: $(VENV)/test
	$(BIN)/python benchmarks/table_formats.py $(BENCH)

# What is decided for an H100 on trained models, without one; about twenty minutes.
bench-h100: $(VENV)/test
	$(BIN)/python benchmarks/h100.py $(BENCH)

# Formats without data, and what real rows say afterwards; half an hour.
bench-without-data: $(VENV)/test
	$(BIN)/python benchmarks/without_data.py $(BENCH)

# What is built, run and verified for which target; the table goes to docs/backends.md.
docs-backends: $(VENV)/test
	$(BIN)/python benchmarks/backends.py $(BENCH)

# What only a GPU can show, within ten minutes; needs torch 2.11 or newer, and installs nothing.
gpu-check:
	$(PYTHON) benchmarks/gpu/check.py $(BENCH)

# Mixtures, train-only parts, several models, conversion windows; under 20 minutes.
bench-heads: $(VENV)/bench $(VENV)/rechub
	$(BIN)/python benchmarks/heads.py $(BENCH)

# Pruning beside torch-pruning and the baselines; hours, goes on where it was stopped.
bench-pruning: $(VENV)/bench
	$(PIP) install --no-deps -c constraints.txt torch-pruning
	$(BIN)/python benchmarks/pruning.py $(BENCH)

# How long the structural pipeline takes on the zoo and on large graphs; some minutes.
bench-pipeline: $(VENV)/test
	$(BIN)/python benchmarks/pipeline_time.py $(BENCH)

# What comparing every artifact with its model costs; some minutes.
bench-comparison: $(VENV)/test
	$(BIN)/python benchmarks/comparison.py $(BENCH)

# Random rankers held against eager PyTorch, an hour; FUZZ="--models 50 --seed 3" for fewer, others.
fuzz-models: $(VENV)/test
	$(BIN)/python tests/support/fuzz_models.py $(FUZZ)

# Every operator alone on every backend, at length; the table goes to docs/operators.md.
conformance: $(VENV)/test
	$(BIN)/python tests/conformance/page.py $(CONFORMANCE)

# Rewrites that are off, with the numbers that say so; two minutes.
bench-forms: $(VENV)/bench
	$(BIN)/python benchmarks/forms.py $(BENCH)

# The knapsack beside ModelOpt's on the same scores; ten minutes.
bench-placement: $(VENV)/bench
	$(PIP) install -c constraints.txt nvidia-modelopt huggingface_hub
	$(BIN)/python benchmarks/placement.py $(BENCH)

# The zoo trained on real data, beside a logistic regression; half an hour.
bench-baselines: $(VENV)/bench
	$(BIN)/python benchmarks/baselines.py $(BENCH)

# One user and many candidates beside peers that get the user once for each; under 15 minutes.
bench-requests: $(VENV)/bench
	$(BIN)/python benchmarks/requests.py $(BENCH)

# --no-deps: the libraries ask for torch as they please.
$(VENV)/rechub: $(VENV)/bench benchmarks/capture_suite/requirements.txt
	$(PIP) install --no-deps -c constraints.txt -r benchmarks/capture_suite/requirements.txt
	touch $@

# torch comes first and pinned: anything that pulls another build pulls gigabytes of CUDA.
$(VENV)/torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install "$$(grep '^torch==' constraints.txt)"
	touch $@

$(VENV)/demo: $(VENV)/torch $(BUILD)
	$(PIP) install -c constraints.txt -e '.[demo]'
	touch $@

$(VENV)/test: $(VENV)/torch $(BUILD)
	$(PIP) install -c constraints.txt -e '.[test]'
	touch $@

$(VENV)/bench: $(VENV)/torch $(BUILD)
	$(PIP) install -c constraints.txt -e '.[bench]'
	touch $@

# Captures every model of the third-party libraries; the table goes to docs/capture.md.
capture-suite: .venv-capture/made
	.venv-capture/bin/python benchmarks/capture_suite/run.py $(SUITE)
	.venv-capture/bin/python -m pytest tests/frontends/test_torchrec.py

# Which interactions of two third-party libraries are recognised, by kind.
interactions: .venv-capture/made
	.venv-capture/bin/python benchmarks/capture_suite/interactions.py

# --no-deps: the libraries ask for torch as they please, and the suite needs none of the rest.
# torchrec is left out where there is no wheel of it.
.venv-capture/made: constraints.txt $(BUILD) $(wildcard benchmarks/capture_suite/*.txt)
	$(PYTHON) -m venv .venv-capture
	$(CAPTURE_PIP) install "$$(grep '^torch==' constraints.txt)"
	$(CAPTURE_PIP) install -c constraints.txt -e '.[data]'
	$(CAPTURE_PIP) install --no-deps -c constraints.txt -r benchmarks/capture_suite/requirements.txt
	-$(CAPTURE_PIP) install --no-deps -c constraints.txt -r benchmarks/capture_suite/requirements-torchrec.txt
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
