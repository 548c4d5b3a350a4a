# Every target sets itself up in .venv. PIP_ARGS is passed to pip (an index with CPU builds of torch, say).
PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin
SOURCES := pyproject.toml setup.py constraints.txt

# Without an NVIDIA driver the CUDA extension could not run: no need to wait for its build (docs/cuda.md).
ifeq ($(wildcard /dev/nvidiactl /dev/dxg),)
export TIVTOK_BUILD_CUDA ?= 0
endif

.PHONY: demo test test-emulator test-compilers test-programs test-processors test-ray lint docs bench gpu clean

demo: .venv/demo-ready
	$(BIN)/tivtok demo demo

test: .venv/test-ready
	$(BIN)/python -m pytest -n auto -m "not (emulator or compilers or programs) or smoke" tests

# What `make test` leaves out: GPU kernels compiled, and run on the emulator with every planted fault.
test-emulator: .venv/test-ready
	$(BIN)/python -m pytest -n auto -m "emulator and not smoke" tests

# And this: the CPU engine built anew, under sanitizers and for Arm; the package installed where there is no compiler.
test-compilers: .venv/test-ready
	$(BIN)/python -m pytest -m compilers tests

# And this: training in several processes, and the peak memory of whole programs.
test-programs: .venv/test-ready
	$(BIN)/python -m pytest -n auto -m programs tests

# Numbers and streams once more, as older processors compute them: without AVX on one thread, then with AVX2 at most on all.
# On a processor without AVX2, or an Arm one, torch says so and uses what there is.
NUMERICS := $(addprefix tests/kernels/test_,attention.py error_budgets.py derivatives.py prepare.py) tests/streaming tests/chunks
test-processors: .venv/test-ready
	OMP_NUM_THREADS=1 ATEN_CPU_CAPABILITY=default MKL_ENABLE_INSTRUCTIONS=SSE4_2 ONEDNN_MAX_CPU_ISA=SSE41 \
	    $(BIN)/python -m pytest -n auto $(NUMERICS)
	ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/python -m pytest $(NUMERICS)

# What needs Ray, which is not among the test extras: on a cluster of two workers, which it starts.
test-ray: .venv/ray-ready
	$(BIN)/python -m pytest tests/pipeline/test_ray.py

bench: .venv/test-ready
	$(BIN)/python -m pytest benchmarks --benchmark-only --benchmark-sort=mean --benchmark-columns=median,iqr,rounds
	$(BIN)/python -m benchmarks.report
	$(BIN)/python -m benchmarks.report --readme

# On a machine with an NVIDIA GPU (docs/gpu.md). Run again, it does what has not passed.
gpu: .venv/test-ready
	$(BIN)/python -m benchmarks.gpu
	$(BIN)/python -m benchmarks.report --readme

lint: .venv/test-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files 'csrc/*.h' 'csrc/*.cu' 'csrc/*.cpp' | xargs $(BIN)/clang-format --dry-run -Werror

# Pages and API reference; a broken link or a docstring that does not fit its signature is an error.
docs: .venv/docs-ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

clean:
	rm -rf .venv build demo *.egg-info

.venv/pip-ready:
	$(PYTHON) -m venv .venv
	touch $@

.venv/demo-ready: .venv/pip-ready $(SOURCES)
	$(BIN)/pip install -q $(PIP_ARGS) -c constraints.txt -e .
	touch $@

.venv/test-ready: .venv/pip-ready $(SOURCES)
	$(BIN)/pip install -q $(PIP_ARGS) -c constraints.txt -e '.[lint,test]'
	touch $@

.venv/ray-ready: .venv/test-ready
	$(BIN)/pip install -q $(PIP_ARGS) -c constraints.txt 'ray[data]'
	touch $@

.venv/docs-ready: .venv/pip-ready $(SOURCES)
	$(BIN)/pip install -q $(PIP_ARGS) -c constraints.txt -e '.[docs]'
	touch $@
