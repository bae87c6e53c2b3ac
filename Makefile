# Two commands for a fresh machine, `make digits` and `make test`; each makes its own virtual environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CONFIG := configs/digits.py
WORKDIR := runs/digits

.PHONY: digits test test-torch test-tpu test-slow lint clean

# Trains on real handwritten digits, draws pictures of what was learned and scores 1,000 samples of it.
digits: $(VENV)/.core
	$(BIN)/python -m uvit_jax.main --config $(CONFIG) --workdir $(WORKDIR)
	$(BIN)/python -m uvit_jax.main --job sample --workdir $(WORKDIR) --config.sample.num_samples=1000 \
	  --config.sample.format=npz --config.sample.out=$(WORKDIR)/samples/scored
	$(BIN)/python benchmarks/digits.py $(WORKDIR)/samples/scored/samples.npz

# The default tests: a few minutes, no network, no accelerator.
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

# The ten full-size models, kills at random moments, 8 devices, two hosts.
test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) runs

# uv installs in seconds where it is there; venv and pip do the same everywhere.
$(VENV)/.core: pyproject.toml
	$(call install,-e .)

$(VENV)/.dev: pyproject.toml
	$(call install,-e '.[dev]')

define install
@if command -v uv >/dev/null 2>&1; then \
  uv venv -q --seed --allow-existing --python $(PYTHON) $(VENV) && uv pip install -q --python $(BIN)/python $(1); \
else \
  $(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install -q --disable-pip-version-check $(1); \
fi
@touch $@
endef
