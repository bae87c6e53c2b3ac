# Two commands for a fresh machine, `make digits` and `make test`; each makes its own virtual environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONFIG := configs/digits.py
WORKDIR := runs/digits

.PHONY: digits quick test test-torch test-tpu test-slow test-oldest docs docs-check docs-test notebooks package lint clean

# Trains on real handwritten digits, draws pictures of what was learned and scores 1,000 samples of it.
digits: $(VENV)/.digits
	$(BIN)/python -m uvit_jax.main --config $(CONFIG) --workdir $(WORKDIR)
	$(BIN)/python -m uvit_jax.main --job sample --workdir $(WORKDIR) --config.sample.num_samples=1000 \
	  --config.sample.format=npz --config.sample.out=$(WORKDIR)/samples/scored
	$(BIN)/python benchmarks/digits.py $(WORKDIR)/samples/scored/samples.npz

# A few tests of each room, for while one works: under a minute on two idle cores. They are named by file, because a
# marker would have every test file imported first.
QUICK := \
  tests/compiled/test_hlo.py \
  tests/data/image_sources/test_crops.py \
  tests/data/prepared/test_manifest.py \
  tests/diffusion/test_schedules.py \
  'tests/diffusion/test_golden_solvers.py::test_every_fixed_step_sample_to_1e_9_in_double_precision[v1.fast]' \
  tests/experiment/test_config.py \
  tests/experiment/test_config_file.py \
  tests/faults \
  'tests/interop/test_official.py::test_network_and_gradients_equal_the_official_ones[uvit_uncond_pixel-unrolled]' \
  tests/interop/test_file_kinds.py \
  tests/jobs/test_train.py::test_a_run_leaves_config_metrics_checkpoints_and_pictures \
  tests/jobs/test_train.py::test_metrics_hold_what_users_plot \
  tests/jobs/test_train.py::test_the_same_command_again_trains_no_further \
  tests/jobs/test_train.py::test_samples_are_files_named_by_label_and_a_grid \
  tests/launch/test_files.py \
  tests/metrics/test_frechet.py \
  tests/metrics/test_kid.py \
  tests/metrics/test_moments.py \
  tests/models/test_embeddings.py \
  tests/models/test_flops.py \
  tests/parallel/test_batches.py \
  tests/parallel/test_launchers.py \
  tests/telemetry/test_progress.py \
  tests/test_command_line.py \
  tests/test_errors.py \
  tests/test_randomness.py::test_no_seed_has_the_epochs_of_another \
  'tests/training/test_step.py::test_eight_official_steps_give_the_official_losses_and_weights[train_continuous-schedule1-1]'

quick: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile -q $(QUICK)

# The default tests: a few minutes, no network, no accelerator, and nothing of PyTorch.
test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Parity with PyTorch, diffusers and the reference metrics, which the other tests do without. This version of torch has
# a CPU build; the metrics' packages would bring torchvision, which their mathematics does not need.
test-torch: $(VENV)/.dev
	$(BIN)/python -m pip install -q --disable-pip-version-check torch==2.13.0 'diffusers>=0.40' 'transformers>=5.0'
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps torch-fidelity==0.4.0 pytorch-fid==0.3.0
	$(BIN)/python -m pytest -m torch

# Programs compiled for TPUs that are not there, by TPU's own compiler.
test-tpu: $(VENV)/.dev
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[tpu]'
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -m tpu

# The ten full-size models, kills at random moments, 8 devices, two hosts; compiled as users have it.
test-slow: $(VENV)/.dev
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 XLA_FLAGS= $(BIN)/python -m pytest -n 2 --dist loadfile -m slow

# The documentation site, into site/; a warning is an error.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Every page of the site in a headless Chromium, which must be installed: errors, requests, widths, pictures.
docs-check: docs
	$(BIN)/python -m pip install -q --disable-pip-version-check playwright
	$(BIN)/python docs/check_site.py

# Every code block of the README and of docs/, also those that train for a minute.
docs-test: $(VENV)/.dev
	$(BIN)/python -m pytest tests/docs -m 'slow or not slow'

# The quick tests with the oldest versions that pyproject.toml allows of what it names.
test-oldest:
	$(PYTHON) -m venv --clear $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install -q --disable-pip-version-check uv
	$(VENV)-oldest/bin/uv pip install -q --python $(VENV)-oldest/bin/python --resolution lowest-direct -e '.[dev]'
	$(VENV)-oldest/bin/python -m pytest -n 2 --dist loadfile -q $(QUICK)

# Builds dist/: a source archive and a wheel made from it, checked as the package index would.
package: $(VENV)/.dev
	rm -rf dist
	$(BIN)/python -m pip install -q --disable-pip-version-check build check-wheel-contents twine
	$(BIN)/python -m build -q
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl

# The notebooks from top to bottom, minutes in all; SAVE=--save writes their outputs, for a commit.
notebooks: $(VENV)/.dev
	$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[notebooks]'
	$(BIN)/python examples/execute.py $(SAVE)

# The rooms that are typed without a gap.
STRICT := uvit_jax/diffusion uvit_jax/training uvit_jax/metrics uvit_jax/experiment

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --strict --follow-imports=silent $(STRICT)
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) $(VENV)-oldest dist runs site site-pictures

# uv installs in seconds where it is there; venv and pip do the same everywhere.
$(VENV)/.digits: pyproject.toml
	$(call install,-e '.[digits]')

$(VENV)/.dev: pyproject.toml
	$(call install,-e '.[dev]')

$(VENV)/.docs: pyproject.toml
	$(call install,-e '.[docs]')

define install
@if command -v uv >/dev/null 2>&1; then \
  uv venv -q --seed --allow-existing --python $(PYTHON) $(VENV) && uv pip install -q --compile-bytecode --python $(BIN)/python $(1); \
else \
  $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install -q --disable-pip-version-check $(1); \
fi
@touch $@
endef
