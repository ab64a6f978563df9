# make book [PROFILE=smoke|quick|full]   make test   make lint   make lock   make serve   make clean
PYTHON ?= python3
PROFILE ?= quick
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp

.PHONY: book test lint lock serve clean

book: $(STAMP)
	$(BIN)/deepneighbors book --profile $(PROFILE)

test: lint
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder --durations 25

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

serve:
	$(PYTHON) -m http.server --bind 127.0.0.1 --directory _build/html 8000

clean:  # what a run builds; the store in artifacts/ and the environment stay
	rm -rf _build book/_build book/chapters .pytest_cache .mypy_cache .ruff_cache

# Modules compile when they are first imported: to compile them all takes a minute, and most are never used.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed, and '$(PYTHON)' is not; name one with: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --no-compile -r requirements.lock
	$(BIN)/python -m pip install -q --no-deps -e .
	@touch $@

# Torch pins its CUDA libraries exactly, so they are left to it: a CPU build of torch then installs none.
CUDA := triton cuda-bindings cuda-pathfinder cuda-toolkit $(addprefix nvidia-,cublas cuda-cupti cuda-nvrtc \
  cuda-runtime cudnn-cu13 cufft cufile curand cusolver cusparse cusparselt-cu13 nccl-cu13 nvjitlink nvshmem-cu13 nvtx)

lock:  # needs uv; UPGRADE=--upgrade moves the versions on
	uv pip compile -q --universal --python-version 3.11 --extra book --extra test --extra workflow $(UPGRADE) \
	  --no-header --no-annotate --no-emit-index-url $(addprefix --no-emit-package ,$(CUDA)) \
	  -o requirements.lock pyproject.toml
