# Every target sets up what it needs in .venv, from exact versions, with nothing but Python 3.11+, make and git.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo up docs unit test test-gpu test-torch lint fix gpu-wheels bench-gpu bench-loop bench-mnist bench-sparse bench-stream bench-large-decoder bench-data bench-goals bench-without-data bench-minilm bench-minilm-layers bench-tasks real-models bench-torch-pruning bench-criteria bench-int8 bench-pipeline bench-features bench-distillation bench-distillation-defaults bench-hinton bench-distill-without-data bench-torchdistill bench-first-result bench-pages bench-plans bench-service bench-simulation bench-ranks recording kubernetes same-bytes stories examples tables pictures files coverage fuzz campaign clean

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v $$p; break; }; done)
BIN := .venv/bin
RUN := .venv/.run-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
# With TORCH_INDEX, pip looks there too: of two builds of one version it takes the one with a local label, as torch's CPU
# builds have in their own index, and leaves the gigabytes of CUDA that torch brings from the default one.
INSTALL := -m pip install --disable-pip-version-check -q $(if $(TORCH_INDEX),--extra-index-url '$(TORCH_INDEX)')
TORCH ?= 2.11.0
OTHER := .venv-torch-$(TORCH)
DEV := .venv/.dev-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)

help:  ## This list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-19s %s\n", $$1, $$2 }' Makefile

demo: $(RUN)  ## Train a small CNN, prune and distill it through a running pared, show before and after; make demo KEEP=1 leaves it running
	$(BIN)/pared demo $(if $(KEEP),--keep)

up: $(RUN)  ## Run pared here: API and worker, everything under ./pared-data; another port: make up PORT=8001
	$(BIN)/pared up $(if $(PORT),--port $(PORT))

docs: $(DEV)  ## The documentation as a site without requests elsewhere -> build/site/index.html; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

unit: $(DEV)  ## The tests that need no server and train nothing, in a minute; some of them: make unit ARGS="-k lease"
	$(BIN)/python -m pytest tests/unit -n 2 -q -p no:cacheprovider $(ARGS)

# Tests mostly wait for real processes, so several run side by side; tests/conftest.py shares out their files.
# Compiled files are kept even where the shell says not to: each of these processes would compile all modules again.
test: export PYTHONDONTWRITEBYTECODE :=
test: $(DEV)  ## All tests: real processes, SQLite and PostgreSQL + Redis
	$(BIN)/python -m pytest -n 6 --no-loadscope-reorder --durations=10

# Torch and the setuptools that it wants come from its own requirements, all else as pinned.
test-torch:  ## Compression, weight files and sandbox with another torch, in its own environment: make test-torch TORCH=2.11.0
	test -x $(OTHER)/bin/python || "$(PYTHON)" -m venv $(OTHER)
	grep -vE '^(torch|setuptools)==' constraints.txt > $(OTHER)/constraints.txt
	$(OTHER)/bin/python $(INSTALL) -c $(OTHER)/constraints.txt \
		'torch==$(TORCH)' -e '.[service,worker,onnx,text,hf,dev]'
	$(OTHER)/bin/python -m pytest -n 3 tests/unit tests/integration/compression tests/integration/worker/test_sandbox.py tests/integration/worker/test_child.py

test-gpu: $(DEV)  ## Real jobs on a card, a JSON line a finding (PARED_TEST_DEVICE=cpu tries the tests without one)
	$(BIN)/python -m pytest tests/gpu -m gpu -q

lint: $(DEV)  ## ruff, bandit, mypy --strict, import contracts; known vulnerabilities, compose file and Dockerfile where they can be checked
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml pared service worker migrations
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/known_vulnerabilities.py
	@for compose in 'docker compose' docker-compose; do \
		if $$compose version >/dev/null 2>&1; then \
			echo "$$compose --profile gpu config --quiet"; \
			POSTGRES_PASSWORD=unused $$compose --profile gpu config --quiet; exit; \
		fi; \
	done; echo "docker-compose.yml is not checked: there is neither docker compose nor docker-compose"
	@if command -v hadolint >/dev/null; then echo "hadolint Dockerfile"; hadolint Dockerfile; \
		else echo "Dockerfile is not checked: there is no hadolint"; fi

fix: $(DEV)  ## Let ruff mend and format what it can, and say what is left
	$(BIN)/ruff check --fix --exit-zero --quiet .
	$(BIN)/ruff format .
	$(BIN)/ruff check .

bench-gpu: $(DEV)  ## Training on a card beside a plain PyTorch loop -> benchmarks/RESULTS.md
	$(BIN)/python benchmarks/gpu.py

gpu-wheels: $(DEV)  ## What benchmarks/on_a_gpu_machine.sh installs where no registry is reached; for another Python: GPU_PYTHON=3.13
	$(BIN)/python benchmarks/gpu_wheels.py .wheels $(GPU_PYTHON)

bench-loop: $(DEV)  ## Training epochs of jobs on the CPU beside a plain PyTorch loop -> benchmarks/RESULTS.md
	$(BIN)/python benchmarks/loop.py

bench-ranks: $(DEV)  ## The same jobs trained by one process and by two (PARED_RANKS=2) on two cores -> benchmarks/RESULTS.md
	$(BIN)/python benchmarks/ranks.py

bench-mnist: $(DEV)  ## The classic pruning and distillation experiments (PARED_MNIST=mnist.npz) -> benchmarks/RESULTS.md
	$(BIN)/python benchmarks/mnist.py

bench-sparse: $(DEV)  ## LeNet-300-100 and LeNet-5 with few weights, and packed (PARED_MNIST=mnist.npz) -> benchmarks/RESULTS.md
	$(BIN)/python benchmarks/sparse_mnist.py

bench-stream: $(DEV)  ## A state dict of 4 GiB pruned in 1 GiB of memory -> benchmarks/RESULTS.md
	$(BIN)/python benchmarks/larger_than_memory.py

bench-large-decoder: $(DEV)  ## A decoder of 0.7 billion parameters, and layers of one of 7, pruned layer by layer -> benchmarks/RESULTS.md
	$(BIN)/python benchmarks/large_decoder.py

bench-data: $(DEV)  ## A data set three times larger than the job's memory, beside the same in memory -> benchmarks/RESULTS.md
	$(BIN)/python benchmarks/larger_data.py

bench-goals: $(DEV)  ## Twenty goals, each result measured again in a clean process -> benchmarks/RESULTS.md
	$(BIN)/python benchmarks/goals.py

bench-torch-pruning: $(DEV)  ## Beside Torch-Pruning: errors at 2×, 4× and 10× fewer MACs, and time (PARED_MNIST=mnist.npz)
	$(BIN)/python $(INSTALL) -c constraints.txt -e '.[service,worker,onnx,text,hf,dev,bench]'
	$(BIN)/python benchmarks/beside_torch_pruning.py

bench-criteria: $(DEV)  ## All criteria for channels on held-out images, which the defaults come from (PARED_MNIST=mnist.npz)
	$(BIN)/python benchmarks/criteria.py

bench-pipeline: $(DEV)  ## A tenth of the bytes at no more than a point, by one pipeline each (PARED_MNIST=mnist.npz) -> benchmarks/RESULTS.md
	$(BIN)/python benchmarks/pipelines.py

bench-distillation: $(DEV)  ## Students by defaults alone beside the same on labels alone (PARED_MNIST=mnist.npz) -> benchmarks/RESULTS.md
	$(BIN)/python benchmarks/distillation.py

bench-distillation-defaults: $(DEV)  ## What the defaults of distillation come from, on held-out samples (PARED_MNIST=mnist.npz)
	$(BIN)/python benchmarks/distillation_defaults.py

bench-hinton: $(DEV)  ## Hinton's MNIST experiment (PARED_MNIST=mnist.npz) -> benchmarks/RESULTS.md
	$(BIN)/python benchmarks/hinton.py

bench-tasks: $(DEV)  ## Half the multiply-adds of nets of six kinds, retrained on labels and on their own answers -> benchmarks/RESULTS.md
	$(BIN)/python benchmarks/tasks.py

bench-features: $(DEV)  ## Twelve pairs of networks of other families, distilled from files by each loss of inner layers -> benchmarks/RESULTS.md
	$(BIN)/python benchmarks/features.py

real-models: $(DEV)  ## Weights as packages ship them, made smaller and measured again -> benchmarks/RESULTS.md
	$(BIN)/python benchmarks/real_models.py

bench-minilm-layers: $(DEV)  ## MiniLM with half of its layers and int8, beside ONNX Runtime's int8 of all -> benchmarks/RESULTS.md
	$(BIN)/python benchmarks/minilm_layers.py

bench-minilm: $(DEV)  ## MiniLM as a folder with half the width of its layers, beside layers dropped -> benchmarks/RESULTS.md
	$(BIN)/python benchmarks/minilm.py

bench-int8: $(DEV)  ## int8 of three nets beside ONNX Runtime's own quantizers (PARED_MNIST=mnist.npz) -> benchmarks/RESULTS.md
	$(BIN)/python benchmarks/int8.py

bench-without-data: $(DEV)  ## What correcting batch norms keeps without data (PARED_MNIST=mnist.npz) -> benchmarks/RESULTS.md
	$(BIN)/python benchmarks/without_data.py

bench-distill-without-data: $(DEV)  ## Students taught by made-up inputs, noise or unlabelled images (PARED_MNIST=mnist.npz) -> benchmarks/RESULTS.md
	$(BIN)/python benchmarks/distill_without_data.py

bench-torchdistill: $(DEV)  ## The same distillation by torchdistill: loss and speed (PARED_MNIST=mnist.npz) -> benchmarks/RESULTS.md
	$(BIN)/pip install --quiet --no-deps torchdistill==1.1.5 pyyaml cython
	$(BIN)/python benchmarks/beside_torchdistill.py

bench-first-result: $(DEV)  ## Seconds from a ready service to a smaller model by web, CLI, Python and curl -> benchmarks/RESULTS.md
	$(BIN)/python benchmarks/first_result.py

bench-pages: $(DEV)  ## The web pages with 10,000 jobs, 1,000 layers and 1,000 epochs, in Chromium -> benchmarks/RESULTS.md
	$(BIN)/python benchmarks/page_speed.py

bench-plans: $(DEV)  ## Processor time and memory of plans of nets as people have them -> benchmarks/RESULTS.md
	$(BIN)/python benchmarks/plans.py

bench-service: $(DEV)  ## Requests a second beside a constant route, jobs beside library calls, files beside plain work, workers that are killed, silent streams, on both backends -> benchmarks/RESULTS.md
	$(BIN)/python benchmarks/api_rates.py
	$(BIN)/python benchmarks/service_jobs.py $(if $(JOBS),--jobs $(JOBS))

bench-simulation: $(DEV)  ## A day of 1,000 workers on the state code in virtual time (JOBS=10000: a shorter one) -> benchmarks/RESULTS.md
	$(BIN)/python benchmarks/simulation.py $(JOBS)

recording: $(DEV)  ## The first journey on the web pages, recorded in Chromium -> docs/pictures
	$(BIN)/python benchmarks/recording.py

same-bytes: $(DEV)  ## Whether ten fixed jobs give the same files and figures as at another commit: make same-bytes BASE=main
	@test -n "$(BASE)" || { echo "Name the commit to compare with: make same-bytes BASE=main" >&2; exit 1; }
	$(BIN)/python benchmarks/same_bytes.py "$(BASE)"

# The schemas are a hundred megabytes: they have an environment of their own.
kubernetes:  ## Hold deploy/kubernetes against the schemas of Kubernetes 1.30 to 1.37
	test -x build/kubernetes/bin/python || "$(PYTHON)" -m venv build/kubernetes
	build/kubernetes/bin/python -m pip install --quiet --disable-pip-version-check kubernetes-validate==1.37.0
	for version in 1.30 1.34 1.37; do for file in namespace config objects api worker worker-gpu; do \
		build/kubernetes/bin/kubernetes-validate --strict -k $$version deploy/kubernetes/$$file.yaml || exit 1; done; done

tables: $(DEV)  ## All rows of the tables of tests of which make test tries some by turns
	$(BIN)/python -m pytest -n 4 --no-loadscope-reorder tests/e2e tests/integration tests/browser tests/unit -m campaign

pictures: $(DEV)  ## Pictures of the pages when something goes wrong, by the tests that walk through it -> docs/errors
	PARED_PICTURES=docs/errors $(BIN)/python -m pytest tests/browser/test_error_journeys.py -q

files: $(DEV)  ## Model files as people hold them, from the upload to results that load or to a refusal: the table
	$(BIN)/python -m pytest tests/e2e/test_files.py -m 'campaign or not campaign' -rP -p no:logging

stories: $(DEV)  ## Users' stories over HTTP, a model and data of each task, pruned, pruned for a goal and distilled: the table
	$(BIN)/python -m pytest tests/e2e/test_stories.py -m 'campaign or not campaign' -rP -p no:logging

examples: $(DEV)  ## All notebooks and scripts of examples/, as they stand, against a whole service
	$(BIN)/python -m pytest tests/e2e/test_examples.py -m 'campaign or not campaign'

coverage: $(DEV)  ## Which architectures lose channels, in which form of file: the table
	$(BIN)/python -m pytest tests/integration/compression/test_coverage.py -m campaign -rP -p no:logging

fuzz: $(DEV)  ## Five hundred random graphs lose channels and answer as they must, counted
	$(BIN)/python -m pytest tests/integration/compression/test_random_graphs.py -m campaign -rP

# tests/support/campaign.py has how sizes are given, and how the counted lines are shown at the end.
campaign: $(DEV)  ## Every threat and fault at its full size, a counted line each; each parser is fuzzed for an hour: FUZZ_MINUTES=60
	PARED_FUZZ_MINUTES=$(or $(FUZZ_MINUTES),60) $(BIN)/python -m pytest -n 3 --no-loadscope-reorder -m campaign \
		tests/faults tests/threats tests/integration/worker/test_sandbox.py tests/integration/worker/test_recovery.py \
		tests/integration/state/test_lifecycle_machine.py tests/integration/state/test_webhooks.py \
		tests/integration/service/test_results.py

clean:  ## Remove what make made
	rm -rf .venv .venv-torch-* build dist ./*.egg-info demo-data

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "pared needs Python 3.11 or newer with venv and pip; none was found." \
		"Install one (Debian, Ubuntu: apt install python3 python3-venv) or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	"$(PYTHON)" -m venv .venv

# The stamps carry a checksum of what they were made from, so that a pull with new versions sets up again.
$(RUN): | .venv/bin/python
	$(BIN)/python $(INSTALL) -c constraints.txt -e '.[service,worker,onnx,text,hf]'
	@rm -f .venv/.run-* && touch $@

$(DEV): | $(RUN)
	$(BIN)/python $(INSTALL) -c constraints.txt -e '.[service,worker,onnx,text,hf,dev]'
	@rm -f .venv/.dev-* && touch $@
