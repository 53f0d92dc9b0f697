# make demo      create .venv, install, build, train a small MLP and show its layers
# make test      create .venv, install, build, run the test-suite
# make lint      ruff, mypy, import contracts, clang-format
# make bench     time the core against one read of the features and other libraries; files against
#                reading them, probes against the bare model, and several processes
# make sanitize  the core under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer
# make neon      the core's test for 64-bit ARM, cross-compiled and run in an emulator, and what it
#                computes compared bit for bit with this machine's; takes the Debian packages
#                g++-aarch64-linux-gnu and qemu-user
# make cuda-resources   compile the CUDA kernels for every architecture, no GPU needed, and compare
#                       what they use with csrc/cuda/resources.md; WRITE=1 writes that table anew
# make gpu-check        on a machine with a GPU: build, test, sanitize and time the CUDA kernels.
#                       PIP_FLAGS="--no-build-isolation --no-deps" installs into $(PYTHON) as it is,
#                       without a network, and does without what it lacks
# Needs Python >= 3.10 and GCC or Clang; PYTHON=python3.12 chooses another Python.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# What the installed extension and its dependencies follow from; Python sources are used in place.
BUILD_INPUTS := $(shell find csrc -type f -not -name '*.md') CMakeLists.txt setup.py pyproject.toml
CPP_SOURCES := $(shell find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.inl' -o -name '*.cuh' -o -name '*.cu')

.PHONY: demo test lint bench sanitize sanitize-address sanitize-thread neon neon-host neon-aarch64 cuda-resources gpu-check clean

demo: $(VENV)/.installed
	$(BIN)/python -m deeprep.run --arch mlp

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/clang-format --dry-run -Werror $(CPP_SOURCES)

bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks.run

CONFIGURE_CORE_TEST = $(BIN)/cmake -S . -B build/$@ -G Ninja \
  -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -DDEEPREP_BUILD_MODULE=OFF -DDEEPREP_BUILD_TESTS=ON \
  -DDEEPREP_WERROR=$(or $(DEEPREP_WERROR),OFF) -DDEEPREP_CUDA=OFF

sanitize: sanitize-address sanitize-thread

sanitize-address sanitize-thread: sanitize-%: $(VENV)/.installed-dev
	$(CONFIGURE_CORE_TEST) -DCMAKE_BUILD_TYPE=RelWithDebInfo -DDEEPREP_SANITIZE=$*
	$(BIN)/cmake --build build/$@
	build/$@/deeprep_core_test

neon: neon-aarch64 neon-host
	@for name in neon-host neon-aarch64; do grep -H '^bits' build/$$name/output || exit 1; done
	@test $$(sed -n 's/^bits \([0-9a-f]*\) .*/\1/p' build/neon-*/output | sort -u | wc -l) = 1 || \
	  { echo "the bits on aarch64 are not this machine's"; exit 1; }

neon-host: $(VENV)/.installed-dev
	$(CONFIGURE_CORE_TEST) -DCMAKE_BUILD_TYPE=Release
	$(BIN)/cmake --build build/$@
	build/$@/deeprep_core_test > build/$@/output || { cat build/$@/output; exit 1; }

neon-aarch64: $(VENV)/.installed-dev
	@command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64 >/dev/null || \
	  { echo "aarch64-linux-gnu-g++ or qemu-aarch64 is missing;" \
	    "Debian: apt install g++-aarch64-linux-gnu qemu-user"; exit 1; }
	$(CONFIGURE_CORE_TEST) -DCMAKE_BUILD_TYPE=Release -DCMAKE_SYSTEM_NAME=Linux \
	  -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++
	$(BIN)/cmake --build build/$@
	qemu-aarch64 -L /usr/aarch64-linux-gnu build/$@/deeprep_core_test > build/$@/output || \
	  { cat build/$@/output; exit 1; }

cuda-resources: $(VENV)/.installed-dev
	$(BIN)/python .ci/cuda_resources.py $(if $(WRITE),,--check)
	$(BIN)/python .ci/cuda_model.py $(if $(WRITE),,--check)

gpu-check: $(if $(PIP_FLAGS),,$(VENV)/.installed-test)
	$(if $(PIP_FLAGS),$(PYTHON),$(BIN)/python) -m benchmarks.gpu_check --pip-flags="$(PIP_FLAGS)"

clean:
	rm -rf $(VENV) build *.egg-info deeprep/_core*.so

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "deeprep needs Python >= 3.10, found: $$($(PYTHON) --version); try make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "cannot create $(VENV): install Python's venv module (Debian: apt install python3-venv)"; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.installed: $(BUILD_INPUTS) | $(BIN)/python
	$(BIN)/python -m pip install --editable .
	@$(BIN)/python -c 'import deeprep; deeprep.show_config()'
	@touch $@

# By name, what is installed already is not built again: only the extra's packages are added.
$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet 'deeprep[test]'
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet 'deeprep[bench]'
	@touch $@

# mypy follows the optional packages too.
$(VENV)/.installed-dev: $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet --group dev
	@touch $@
