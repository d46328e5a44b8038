# make demo and make test create .venv, install torch and this package in it, and build the operators again when their
# sources have changed. An activated environment that has torch is used as it is, and so is the one that PYTHON names
# (make demo PYTHON=python). What Debian has to provide and does not is named first, and installed where that is allowed.

TORCH ?= torch==2.13.0
OUT ?= outputs/demo
CPP_SOURCE ?= .
CPP_BUILD ?= build/cpp
DIFFUSERS ?= 0.35.0
MAX_JOBS ?= $(shell nproc)
export MAX_JOBS
# Python compiles what it imports, which takes less than to compile all of torch ahead.
export PIP_COMPILE ?= 0

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
MAKEFLAGS += --no-print-directory
.PHONY: help demo docs wheels hub-kernel test test-python test-diffusers test-cpp build bench format lint clean distclean check-demo check-test
.PHONY: gpu-check gpu-report check-emulator check-kernels test-emulator test-cuda-on-emulator emulator-program device-program

help:
	@echo 'make demo          generate videos of moving digits in $(OUT)'
	@echo 'make test          the whole test suite: pytest and GoogleTest'
	@echo 'make test-python   pytest only; PYTEST="-x -k matrix_linear" are options for it'
	@echo 'make test-diffusers the adapters with another diffusers, the oldest that is supported: DIFFUSERS=$(DIFFUSERS)'
	@echo 'make test-cpp      the C++ library: GoogleTests, installation, a project that uses it, packages of AOTInductor'
	@echo 'make test-emulator the CUDA kernels on the emulator; make check-emulator shows that it catches their faults'
	@echo 'make test-cuda-on-emulator the tests of the CUDA operators on the emulator'
	@echo 'make check-kernels compile the CUDA kernels for every architecture and inspect the machine code'
	@echo 'make build         the package built in place, with all that development needs'
	@echo 'make wheels        a wheel for TORCH in dist/'
	@echo 'make hub-kernel    a kernel for TORCH in the format of the Hugging Face Hub, in build/hub-kernel'
	@echo 'make bench         both attentions against eager torch and dense attention on this CPU'
	@echo 'make gpu-check     build, check and time everything on a machine with a GPU; OUT=DIR gets the results'
	@echo 'make gpu-report    what gpu-check left in DIR=DIR, as files of the repository'
	@echo 'make format        bring the sources into their format'
	@echo 'make lint          check format, style and types'
	@echo 'make docs          the documentation site in build/site'
	@echo 'make clean         remove what was built; make distclean removes .venv too'
	@echo
	@echo 'TORCH="$(TORCH)" goes into .venv; PYTHON=python uses an environment that has torch instead.'

# ---- The environment and the package in it ---------------------------------------------------------------------------

# The file of a package that a Python finds. That of torch names the environment, and is new when torch was installed
# anew.
origin_of = $(shell $(2) -c 'import importlib.util as u; print(u.find_spec("$(1)").origin)' 2>/dev/null)
torch_of = $(call origin_of,torch,$(1))

ifneq ($(filter-out $(CURDIR)/.venv,$(VIRTUAL_ENV) $(CONDA_PREFIX)),)  # an environment of the user's is activated
  ifneq ($(call torch_of,python),)
    PYTHON ?= python
  endif
endif
PYTHON ?= .venv/bin/python

ifeq ($(PYTHON),.venv/bin/python)
  TORCH_FILE := .venv/torch.installed
  export PATH := $(CURDIR)/.venv/bin:$(PATH)
  # A TORCH that the user asks for replaces another one.
  ifneq ($(origin TORCH),file)
    ifneq ($(shell cat $(TORCH_FILE) 2>/dev/null),$(TORCH))
      .PHONY: $(TORCH_FILE)
    endif
  endif
else
  TORCH_FILE := $(call torch_of,$(PYTHON))
  GIVEN_PYTHON := $(PYTHON)
  ifeq ($(TORCH_FILE),)
    $(error $(PYTHON) has no torch. Install one there, or leave out PYTHON: make then creates .venv)
  endif
endif

.venv/torch.installed: | check-demo
	test -x .venv/bin/python || python3 -m venv .venv
	.venv/bin/pip install 'setuptools>=77' ninja $(foreach word,$(TORCH),'$(word)')
	echo '$(TORCH)' > $@

# The package is installed once for each environment and set of extras, and again when the compiled sources change or
# another environment was the last to build here (_build.py is younger then). Naming torch and its version keeps pip
# from replacing it.
INSTALLED := build/make/$(subst /,_,$(TORCH_FILE))
SOURCES := setup.py pyproject.toml VERSION csrc/sources.txt \
  $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' -o -name '*.inc')
THIS_TORCH = torch==$(shell $(PYTHON) -c 'from importlib.metadata import version; print(version("torch"))')

$(INSTALLED)/%: $(TORCH_FILE) $(SOURCES) $(wildcard python/frameattn/_build.py) | check-demo
	$(PYTHON) -m pip install --quiet 'setuptools>=77' ninja $(THIS_TORCH)
	$(PYTHON) -m pip install --no-build-isolation --editable '.[$*]' $(THIS_TORCH)
	$(PYTHON) -m frameattn info
	mkdir -p $(@D) && touch $(@D)/video $@

build: $(INSTALLED)/video,dev

# A wheel for TORCH, in dist/VARIANT; FRAMEATTN_CUDA=0 makes one for CPUs beside a CUDA torch.
wheels: check-demo $(TORCH_FILE)
	bash tools/build_wheel $(PYTHON)

# Beside the kernels for other torches that are there. What `make build` compiled is linked again, where it is of the
# same torch.
hub-kernel: check-demo $(TORCH_FILE)
	$(PYTHON) -m pip install --quiet 'setuptools>=77' ninja
	$(PYTHON) tools/build_hub_kernel.py

# What Debian has to provide, before any work is done.
check-demo check-test: check-%:
	@bash .ci/install_missing $* $(GIVEN_PYTHON)

# ---- What to do with it ----------------------------------------------------------------------------------------------

demo: check-demo $(INSTALLED)/video
	$(PYTHON) -m frameattn sample --ckpt demo/moving_digits.safetensors --out $(OUT) --classes 0,1,2,3,4,5,6,7,8,9 $(SAMPLE)

# The emulator is built first: one of the Python tests builds it, too, and gives it four minutes.
test: check-test emulator-program test-python test-cpp test-emulator

# Most tests keep one core busy: they run side by side, those of a file after each other. PYTEST="-n 0" has them in one
# process. Their threads must not spin while they wait for cores that others use.
RUN_PYTEST = OMP_WAIT_POLICY=passive $(PYTHON) -m pytest -n $(MAX_JOBS) --dist loadfile

test-python: $(INSTALLED)/video,dev
	$(RUN_PYTEST) $(PYTEST)

# Ahead of the installed one in the path; what both need is installed. Tests of models that it lacks say so.
test-diffusers: $(INSTALLED)/video,dev
	$(PYTHON) -m pip install --quiet --no-deps --upgrade --target build/diffusers-$(DIFFUSERS) diffusers==$(DIFFUSERS)
	PYTHONPATH=build/diffusers-$(DIFFUSERS) $(RUN_PYTEST) tests/python/adapters $(PYTEST)

# The C++ library is built from the same sources without Python. CMake's cache would remember the torch of another
# environment; what is compiled stays. The packages that a C++ program runs are made by the Python package, which is
# installed first, or anew, unless it is one of the environment's own.
test-cpp: CMAKE = torch=$$($(PYTHON) $(CPP_SOURCE)/cmake/torch_options.py); cmake $$torch
test-cpp: check-test $(TORCH_FILE) $(if $(filter-out $(CURDIR)/python/%,$(call origin_of,frameattn,$(PYTHON))),,$(INSTALLED)/video,dev)
	rm -f $(CPP_BUILD)/CMakeCache.txt $(CPP_BUILD)/consumer/CMakeCache.txt
	$(CMAKE) -S $(CPP_SOURCE) -B $(CPP_BUILD) $(CMAKE_OPTIONS)
	cmake --build $(CPP_BUILD) --parallel $(MAX_JOBS)
	ctest --test-dir $(CPP_BUILD) --output-on-failure --no-tests=error --parallel $(MAX_JOBS)
	cmake --install $(CPP_BUILD) --prefix $(CPP_BUILD)/installed
	$(CMAKE) -S $(CPP_SOURCE)/examples/cpp -B $(CPP_BUILD)/consumer -Dframeattn_ROOT=$(abspath $(CPP_BUILD)/installed)
	cmake --build $(CPP_BUILD)/consumer
	$(CPP_BUILD)/consumer/consumer
	rm -rf $(CPP_BUILD)/packages
	$(PYTHON) examples/export_aoti.py --out $(CPP_BUILD)/packages
	AOTI_RUNTIME_CHECK_INPUTS=1 $(CPP_BUILD)/consumer/run_package $(CPP_BUILD)/packages/*.pt2

# The CUDA kernels as programs without torch: tools/emulator/README.md.
EMULATOR = $(MAKE) -C tools/emulator -j $(MAX_JOBS) BUILD=$(CURDIR)/build
test-emulator: check-test
	$(EMULATOR) test

# The tests of the CUDA operators, which need a GPU, on the emulator: their host code and kernels on tensors of the CPU.
# All of them take half an hour; EMULATED names some.
EMULATED = tests/python/cuda
test-cuda-on-emulator: check-test $(INSTALLED)/video,dev
	$(EMULATOR) operators TORCH_FLAGS="$$($(PYTHON) tools/emulator/torch_flags.py)"
	PYTHONPATH=tests/python/cuda $(RUN_PYTEST) -p on_emulator $(EMULATED) $(PYTEST)

check-emulator: check-test
	python3 tools/emulator/mutations.py $(MUTATIONS)

emulator-program:
	$(EMULATOR) emulator-program

device-program:
	$(EMULATOR) device

check-kernels: $(INSTALLED)/video,dev
	$(PYTHON) tools/check_kernels.py $(CHECK_KERNELS)

bench: $(INSTALLED)/video,dev
	$(PYTHON) -m benchmarks.run matrix_attention --device cpu
	$(PYTHON) -m benchmarks.run vmonarch_attention --device cpu

# For a bare machine with a GPU: any Python that has torch, nothing is installed, no network. GPU_CHECK holds options.
GPU_PYTHON = $(or $(GIVEN_PYTHON),$(wildcard .venv/bin/python),python3)
gpu-check: OUT = outputs/gpu_check
gpu-check:
	$(GPU_PYTHON) -m benchmarks.gpu_check --out '$(OUT)' $(GPU_CHECK)

gpu-report: DIR = outputs/gpu_check
gpu-report:
	$(GPU_PYTHON) -m benchmarks.gpu_report '$(DIR)'

CPP_FILES := $(shell find csrc benchmarks tests/cpp examples/cpp tools/emulator -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' -o -name '*.inc')

format: $(INSTALLED)/video,dev
	ruff format .
	ruff check --fix .
	clang-format -i $(CPP_FILES)

lint: $(INSTALLED)/video,dev
	ruff format --check .
	ruff check .
	$(PYTHON) -m mypy
	clang-format --dry-run -Werror $(CPP_FILES)

# In an environment of its own: the site is made of sources, which are read and not imported.
docs: .venv-docs/installed
	.venv-docs/bin/python tools/build_site.py

EXTRA_DOCS = import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])
.venv-docs/installed: pyproject.toml
	@python3 -c 'import tomllib' 2>/dev/null || { echo 'make docs needs Python 3.11 or newer as python3'; exit 1; }
	test -x .venv-docs/bin/python || python3 -m venv .venv-docs
	.venv-docs/bin/python -c '$(EXTRA_DOCS)' | xargs .venv-docs/bin/python -m pip install --quiet
	touch $@

clean:
	rm -rf build python/frameattn.egg-info python/frameattn/_C*.so python/frameattn/_build.py

distclean: clean
	rm -rf .venv .venv-docs
