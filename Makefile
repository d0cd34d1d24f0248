# Everything this project builds, runs and checks. `make help` lists the targets.
#
# `make serve` and `make test` need nothing but python3 with venv. They install the rest here:
#
#   .venv        what the service needs; no torch
#   .venv-test   the same, and what export, training and the tests need
#   .venv-gpu    the same with ONNX Runtime for GPUs, which excludes the one for CPUs: for `make test-gpu`
#
# Each environment installs this checkout in editable form, in the versions of requirements/constraints.txt.
# It is updated when that file or pyproject.toml changes.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# ---------------------------------------------------------------------------------------------- settings

PYTHON ?= python3
# The exact version is installed before any package that accepts a range of versions: a range would bring
# the newest build, and with it gigabytes of CUDA libraries.
TORCH ?= torch==2.13.0
# Added to every pip install, e.g. an index of CPU builds of torch.
PIP_ARGS ?=
# Port of `make serve`.
PORT ?= 8000
# Bundle that `make bench` and `make load` measure.
BUNDLE ?= models/demo/bundles/cifar10
# Added to the command line of serve, bench and load, and to that of pytest.
ARGS ?=
PYTEST_ARGS ?=
# Data set that `make demo` trains on.
DATA ?= ../shared/data/cifar10-train.zip
# CUDA architectures of the GPU libraries, e.g. 90 for an H100 alone, which compiles much sooner. By
# default all of native/kernels/architectures.txt. After a change run `make -B plugins-cuda plugins-tensorrt`.
CUDA_ARCHITECTURES ?=
# Folder of NvInferRuntime.h, to compile the plugins with NVIDIA's declarations instead of this project's.
# After a change run `make -B plugins-tensorrt`.
TENSORRT_INCLUDE_DIR ?=

build := build
dist := dist
demo := models/demo
comma := ,
constraints := requirements/constraints.txt
test_bin := .venv-test/bin

# The compiled libraries lie in the package, where tokenfold/runtime/libraries.py looks for them.
libraries := tokenfold/runtime/native
library := $(libraries)/libtokenfold_ort.so
cuda_library := $(libraries)/libtokenfold_ort_cuda.so
tensorrt_library := $(libraries)/libtokenfold_tensorrt.so

plugins := native/onnxruntime
kernels := native/kernels
tensorrt := native/tensorrt
sources := $(wildcard $(addprefix $(plugins)/,*.cc *.h *.txt) native/third_party/onnxruntime/include/*.h)
cuda_sources := native/CMakeLists.txt $(wildcard $(addprefix $(kernels)/,*.cu *.cuh *.cc *.h *.txt))
tensorrt_sources := $(wildcard $(addprefix $(tensorrt)/,*.cc *.h *.txt))

tools := $(build)/tools
cmake := $(or $(shell command -v cmake),$(tools)/bin/cmake)

.PHONY: help
help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# ------------------------------------------------------------------------------------------------- serve

.PHONY: serve
serve:  ## serve the built-in models on PORT, 8000 by default
	@# In parallel: the installation waits for the network while the compiler runs.
	@$(MAKE) -s -j2 .venv/.installed optional-plugins
	export TOKENFOLD_DATA_DIR="$${TOKENFOLD_DATA_DIR:-$(build)/data}"; \
	exec .venv/bin/tokenfold serve --port $(PORT) --sample-gallery $(ARGS)

.PHONY: bench
bench: .venv/.installed optional-plugins  ## measure every level of BUNDLE
	.venv/bin/tokenfold bench $(BUNDLE) $(ARGS)

.PHONY: load
load: .venv/.installed optional-plugins  ## compare the served throughput of BUNDLE with the bare session's
	.venv/bin/python -m load_tests.served_vs_bare $(BUNDLE) $(ARGS)

# ------------------------------------------------------------------------------------------------- check

.PHONY: test
test: .venv-test/.installed optional-plugins  ## check the style, the types, and that all tests pass
	$(test_bin)/ruff check .
	$(test_bin)/ruff format --check .
	$(test_bin)/mypy
	@# The tests of a file stay in one process, because they share servers and exports.
	$(test_bin)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile $(PYTEST_ARGS)

.PHONY: test-more
test-more: .venv-test/.installed chromium  ## test the wheel, the page in a browser, and the ops for aarch64
	$(test_bin)/python -m pytest -m more -rs $(PYTEST_ARGS)
	@if $(MAKE) aarch64-tools; then $(MAKE) test-aarch64; else \
		echo 'NOTICE: the ops for aarch64 are not tested, for the reason above.'; \
	fi

.PHONY: format
format: .venv-test/.installed  ## rewrite the Python code in the project's style
	$(test_bin)/ruff check --fix .
	$(test_bin)/ruff format .

.PHONY: lock
lock:  ## write the newest versions that pyproject.toml allows to requirements/constraints.txt
	rm -rf $(build)/lock
	$(PYTHON) -m venv $(build)/lock
	$(call pip_install,$(build)/lock) '$(TORCH)'
	$(call pip_install,$(build)/lock) '$(TORCH)' -e '.[cpu,export,test,docs]'
	$(build)/lock/bin/python requirements/freeze.py > $(constraints)

# ----------------------------------------------------------------------------------------------- package

.PHONY: wheel
wheel: .venv-test/.installed  ## build the sdist, and from it the wheel for this processor, into dist/
	rm -rf $(build)/dist
	$(test_bin)/python -m build --outdir $(build)/dist
	@# Names the oldest glibc that the library runs with, or fails where it needs what no tag promises.
	PATH="$(abspath $(test_bin)):$$PATH" $(test_bin)/python -m auditwheel repair --wheel-dir $(dist) $(build)/dist/*.whl
	cp $(build)/dist/*.tar.gz $(dist)

# ------------------------------------------------------------------------------------------- native code

# Without a compiler the same graphs run on their portable bodies, with the same results but slower.
.PHONY: optional-plugins
optional-plugins:
	@$(MAKE) plugins || printf '%s\n' '' \
		'NOTICE: the native ops could not be built, for the reason above.' \
		'NOTICE: everything works without them, on portable ops that give the same results more slowly.' ''

.PHONY: plugins
plugins: $(library)  ## compile the native ops for ONNX Runtime
	@:

.PHONY: plugins-cuda
plugins-cuda: $(cuda_library)  ## compile the native ops for CUDA too, which needs nvcc but no GPU
	@:

.PHONY: plugins-tensorrt
plugins-tensorrt: $(tensorrt_library)  ## compile the native ops as TensorRT plugins, which needs nvcc but no GPU and no TensorRT
	@:

# Compiles a library into the folder of the target. Arguments: CMake's target, its project, the build
# folder, the library's folder in the build, options for CMake.
define build_library
	@command -v "$${CXX:-c++}" >/dev/null || { echo 'found no C++ compiler' >&2; exit 1; }
	@$(cmake) -S $(2) -B $(3) $(5)
	@$(cmake) --build $(3) --target $(1) --parallel
	@$(cmake) --install $(4) --prefix $(@D)
	@touch $@
endef
# The same for a library for GPUs. Arguments: CMake's target, its folder in the build, options. The libraries
# share a build, because the kernels take minutes to compile.
define build_gpu_library
	@command -v "$${CUDACXX:-nvcc}" >/dev/null || { echo 'found no nvcc, which comes with the CUDA toolkit' >&2; exit 1; }
	$(call build_library,$(1),native,$(build)/plugins-gpu,$(build)/plugins-gpu/$(2),-DCMAKE_CUDA_ARCHITECTURES='$(CUDA_ARCHITECTURES)' $(3))
endef

$(library): $(sources) $(filter $(tools)/%,$(cmake))
	$(call build_library,tokenfold_ort,$(plugins),$(build)/plugins,$(build)/plugins)

$(cuda_library): $(sources) $(cuda_sources) $(filter $(tools)/%,$(cmake))
	$(call build_gpu_library,tokenfold_ort,onnxruntime)

$(tensorrt_library): $(cuda_sources) $(tensorrt_sources) $(filter $(tools)/%,$(cmake))
	$(call build_gpu_library,tokenfold_tensorrt,tensorrt,-DTENSORRT_INCLUDE_DIR='$(TENSORRT_INCLUDE_DIR)')

# They share a build folder, so they are built one after the other.
ifneq ($(filter plugins-cuda,$(MAKECMDGOALS)),)
$(tensorrt_library): | $(cuda_library)
endif

# For 64-bit ARM: the op library, a program that runs graphs there, and the ONNX Runtime that it loads.
aarch64 := $(build)/aarch64
aarch64_toolchain := -DCMAKE_TOOLCHAIN_FILE='$(abspath native/aarch64-linux-gnu.cmake)'
emulated := tests/native/emulated
onnxruntime := $(shell sed -n 's/^onnxruntime==/onnxruntime-/p' $(constraints) 2>/dev/null)

.PHONY: aarch64-tools
aarch64-tools:
	@if ! command -v aarch64-linux-gnu-g++ >/dev/null || ! command -v qemu-aarch64 >/dev/null; then \
		[ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null || \
			{ echo 'found no cross compiler or no qemu: install g++-aarch64-linux-gnu and qemu-user' >&2; exit 1; }; \
		apt-get update -qq; \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq g++-aarch64-linux-gnu qemu-user >/dev/null; \
	fi

.PHONY: plugins-aarch64
plugins-aarch64: aarch64-tools $(filter $(tools)/%,$(cmake))  ## compile the native ops for 64-bit ARM, with a cross compiler
	@$(cmake) -S $(plugins) -B $(aarch64)/ops $(aarch64_toolchain)
	@$(cmake) --build $(aarch64)/ops --target tokenfold_ort --parallel
	@$(cmake) --install $(aarch64)/ops --prefix $(aarch64)

.PHONY: test-aarch64
test-aarch64: .venv-test/.installed plugins-aarch64 $(aarch64)/$(onnxruntime)  ## run the tests of the ops in ONNX Runtime for 64-bit ARM, emulated
	@$(cmake) -S $(emulated) -B $(aarch64)/driver $(aarch64_toolchain)
	@$(cmake) --build $(aarch64)/driver
	TOKENFOLD_TEST_AARCH64='$(abspath $(aarch64))' $(test_bin)/python -m pytest -k 'not portable' \
		tests/native/test_ops.py tests/native/test_pumer_ops.py

$(aarch64)/$(onnxruntime): .venv-test/.installed
	@rm -rf $(aarch64)/onnxruntime*
	@$(test_bin)/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
		--platform manylinux_2_28_aarch64 --python-version 3.11 --dest $@.part $(subst -,==,$(onnxruntime))
	@$(PYTHON) -m zipfile -e $@.part/*.whl $@.part
	@mv $@.part $@

# -------------------------------------------------------------------------------------------------- GPU

# compute-sanitizer comes with the CUDA toolkit. It takes too long for large shapes, and needs no time limit
# for the others.
without_engines := import sys; from tokenfold.runtime.tensorrt.runtime import missing; sys.exit(missing())
has_gpu := import ctypes, sys; sys.exit(ctypes.CDLL("libcuda.so.1").cuInit(0))
gpu_tests := .venv-gpu/bin/python -m pytest $(PYTEST_ARGS) tests/gpu
gpu_checks := $(gpu_tests) -p no:cacheprovider --timeout 0 -k "ties_go or weighted_mean or pumer_agrees or packed or zeros"
gpu_tools := memcheck initcheck synccheck racecheck
gpu_times := .venv-gpu/bin/python -m tests.gpu.times && .venv-gpu/bin/python -m tests.gpu.attend_times

.PHONY: test-gpu
test-gpu:  ## check kernels, sessions and the service on a GPU, and time the kernels, or say what that would run
	@if $(PYTHON) -c '$(has_gpu)' 2>/dev/null; then \
		$(MAKE) run-test-gpu; \
	else \
		printf '%s\n' 'Found no GPU. On a machine with one, this runs:' \
			'  make plugins plugins-cuda plugins-tensorrt' \
			'  $(gpu_tests)' \
			'  compute-sanitizer --tool memcheck $(gpu_checks)   (and $(filter-out memcheck,$(gpu_tools)))' \
			'  $(gpu_times)' \
			'  make bench-gpu'; \
	fi

.PHONY: run-test-gpu
run-test-gpu: .venv-gpu/.installed
	@$(MAKE) plugins plugins-cuda plugins-tensorrt || printf '%s\n' '' \
		'NOTICE: ops for a GPU could not be built, for the reason above: what needs them is not tested.' ''
	$(gpu_tests)
	@if command -v compute-sanitizer >/dev/null; then \
		for tool in $(gpu_tools); do \
			compute-sanitizer --error-exitcode 1 --tool $$tool $(gpu_checks) || exit; \
		done; \
	else \
		echo 'NOTICE: compute-sanitizer is not installed, so memory, barriers and races are not checked.'; \
	fi
	$(gpu_times)
	@if why=$$(.venv-gpu/bin/python -c '$(without_engines)' 2>&1); then $(MAKE) bench-gpu; else echo "NOTICE: no bench of TensorRT: $$why"; fi

# ViT's levels are those of the tables for CUDA; PuMer's are the default ones.
gpu_levels := --levels exact=0$(comma)r8=r8$(comma)r13=r13$(comma)r16=r16 --default-level r8
gpu_reports := $(patsubst %,$(build)/gpu/%.json,vit-b16 vit-l16 vilt-b32)

.PHONY: bench-gpu
bench-gpu: $(gpu_reports)  ## measure TensorRT beside ONNX Runtime on a GPU, and write docs/gpu.md
	.venv-gpu/bin/python -m tokenfold.bench.gpu_tables $^ --into docs/gpu.md

$(build)/gpu/%.json: .venv-gpu/.installed
	.venv-gpu/bin/tokenfold export random:$* --precision fp16 $(if $(filter vit-%,$*),$(gpu_levels)) --out $(build)/gpu/$*
	.venv-gpu/bin/tokenfold bench $(build)/gpu/$* --backend tensorrt --beside cuda --static-levels --engines $(build)/gpu/engines --out $@

# ----------------------------------------------------------------------------------------- built-in models

# Exports a trained network in fp32 and int8. Arguments: its name, further arguments for export.
define export_demo
	.venv-test/bin/tokenfold export $(demo)/checkpoints/$(1) --images $(build)/$(1)/held-out.zip --out $(demo)/bundles/$(1) $(2)
	.venv-test/bin/tokenfold bench $(demo)/bundles/$(1) --save
	.venv-test/bin/tokenfold export $(demo)/checkpoints/$(1) --precision int8 --images $(build)/$(1)/held-out.zip --out $(demo)/bundles/$(1)-int8 $(2)
	.venv-test/bin/tokenfold bench $(demo)/bundles/$(1)-int8 --save
endef

.PHONY: demo
demo: .venv-test/.installed optional-plugins  ## train the built-in classifier on DATA, about an hour, and export it
	.venv-test/bin/python -m tokenfold.models.training.cifar --data $(DATA) --out $(build)/cifar10
	mkdir -p $(demo)/checkpoints/cifar10
	cp $(build)/cifar10/tokenfold.json $(build)/cifar10/model.safetensors $(build)/cifar10/training.json $(demo)/checkpoints/cifar10
	$(call export_demo,cifar10)

.PHONY: demo-scenes
demo-scenes: .venv-test/.installed optional-plugins  ## train the built-in network for images with texts, two hours, and export it
	for phase in teacher compare student checkpoint; do \
		.venv-test/bin/python -m tokenfold.models.training.pair $$phase --out $(build)/scenes || exit; \
	done
	mkdir -p $(demo)/checkpoints/scenes
	cp $(build)/scenes/checkpoint/* $(demo)/checkpoints/scenes
	$(call export_demo,scenes,--levels exact=0$(comma)high=0.2$(comma)balanced=0.4$(comma)fast=0.5$(comma)fastest=0.55)

.PHONY: demo-retrieval
demo-retrieval: .venv-test/.installed optional-plugins  ## train the built-in network for retrieval, half an hour, and export it
	for phase in train checkpoint; do \
		.venv-test/bin/python -m tokenfold.models.training.retrieval $$phase --out $(build)/scenes || exit; \
	done
	mkdir -p $(demo)/checkpoints/scenes-retrieval
	cp $(build)/scenes/retrieval-checkpoint/* $(demo)/checkpoints/scenes-retrieval
	.venv-test/bin/tokenfold export $(demo)/checkpoints/scenes-retrieval --precision int8 --images $(build)/scenes/retrieval-held-out.zip --out $(demo)/bundles/scenes-retrieval
	.venv-test/bin/tokenfold bench $(demo)/bundles/scenes-retrieval --save

# ------------------------------------------------------------------------------------------ environments

# Recipes use these for a virtual environment: the folder that is passed, by default that of the target.
new_enough := import sys; sys.exit(sys.version_info < (3, 11) and "Tokenfold needs Python 3.11 or newer")
define make_venv
	@echo 'Installing into $(or $(1),$(@D)); the first time takes a while'
	@$(PYTHON) -c '$(new_enough)'
	@test -x $(or $(1),$(@D))/bin/pip || $(PYTHON) -m venv --clear $(or $(1),$(@D))
endef
pip_install = $(or $(1),$(@D))/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS)

.venv/.installed: pyproject.toml $(constraints)
	$(make_venv)
	$(pip_install) -c $(constraints) -e '.[cpu]'
	@touch $@

.venv-test/.installed: pyproject.toml $(constraints)
	$(make_venv)
	$(pip_install) '$(TORCH)'
	$(pip_install) '$(TORCH)' -c $(constraints) -e '.[cpu,export,test]'
	@touch $@

.venv-gpu/.installed: pyproject.toml $(constraints)
	$(make_venv)
	$(pip_install) '$(TORCH)'
	$(pip_install) '$(TORCH)' -c $(constraints) -e '.[gpu,export,test]'
	@# It comes from NVIDIA's package index. Without it, GPUs that TensorRT for RTX supports use that one.
	$(pip_install) -c $(constraints) -e '.[tensorrt]' && touch $@ || \
		printf '%s\n' '' 'NOTICE: TensorRT could not be installed, for the reason above; it is tried again the next time.' ''

$(tools)/bin/cmake:
	$(call make_venv,$(tools))
	$(call pip_install,$(tools)) cmake

# ----------------------------------------------------------------------------------------- documentation

.PHONY: docs
docs: .venv-test/.installed  ## build the documentation into build/site
	NO_MKDOCS_2_WARNING=1 .venv-test/bin/mkdocs build --strict

# Debian's Chromium. Without it, the tests in a browser are skipped.
.PHONY: chromium
chromium:
	@command -v chromium >/dev/null || { test "$$(id -u)" = 0 && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; } || \
		echo 'NOTICE: chromium is not installed: apt-get install chromium'

.PHONY: screenshots
screenshots: .venv-test/.installed optional-plugins chromium  ## take the pictures of README and docs anew, with Chromium
	.venv-test/bin/python -m tests.browser.screenshots
	.venv-test/bin/python -m tokenfold.bench.chart $(demo)/bundles/cifar10-int8 $(demo)/bundles/scenes-int8:vqa \
		$(demo)/bundles/scenes-retrieval --out docs/images/levels.svg

.PHONY: clean
clean:  ## remove what make built and installed
	rm -rf .venv .venv-test .venv-gpu $(dist)
	rm -rf $(addprefix $(build)/,aarch64 cuda_host dist gpu lock plugins plugins-gpu plugins-gpu-test sdist tools wheel)
	rm -f $(library) $(cuda_library) $(tensorrt_library)
