# `make serve` and `make test` need nothing but python3 with venv: they install the rest here.
#
#   .venv        what the service needs: no torch
#   .venv-test   that, and what export, training and the tests need
#   .venv-gpu    the same with ONNX Runtime for GPUs, which excludes the other: for `make test-gpu`
#
# All hold this checkout in editable form, and are brought up to date when pyproject.toml changes.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
# The exact version is installed before anything that names a range: a range would bring the newest build,
# and gigabytes of CUDA libraries with it.
TORCH ?= torch==2.13.0
# For every pip install, such as: --extra-index-url https://download.pytorch.org/whl/cpu
PIP_ARGS ?=
PORT ?= 8000
# What `make bench` and `make load` measure.
BUNDLE ?= models/demo/bundles/cifar10
# Further arguments for what serve, bench or load runs, and for pytest.
ARGS ?=
PYTEST_ARGS ?=

# What `make demo` trains on.
DATA ?= ../shared/data/cifar10-train.zip

build := build
demo := models/demo
comma := ,
# The compiled libraries lie in the package, so that a wheel holds them.
libraries := tokenfold/runtime/native
plugins := native/onnxruntime
library := $(libraries)/libtokenfold_ort.so
sources := $(shell find $(plugins) -name '*.cc' -o -name '*.cpp' -o -name '*.h' -o -name '*.hpp')
kernels := native/kernels
cuda_library := $(libraries)/libtokenfold_ort_cuda.so
cuda_sources := native/CMakeLists.txt $(wildcard $(addprefix $(kernels)/,*.cu *.cuh *.cc *.h *.txt))
tensorrt := native/tensorrt
tensorrt_library := $(libraries)/libtokenfold_tensorrt.so
tensorrt_sources := $(wildcard $(addprefix $(tensorrt)/,*.cc *.h *.txt))
# Such as 90 for an H100: the libraries are built for this alone then, and much sooner. After another value,
# `make -B plugins-cuda plugins-tensorrt`.
CUDA_ARCHITECTURES ?=
# Folder of NvInferRuntime.h, to compile with NVIDIA's declarations and not with ours. After another value,
# `make -B plugins-tensorrt`.
TENSORRT_INCLUDE_DIR ?=
tools := $(build)/tools
cmake := $(or $(shell command -v cmake),$(tools)/bin/cmake)

# Recipes use these for the virtual environment their target lies in: $(@D), or what it is given.
new_enough := import sys; sys.exit(sys.version_info < (3, 11) and "Tokenfold needs Python 3.11 or newer")
define make_venv
	@echo 'Installing into $(or $(1),$(@D)); the first time takes a while'
	@$(PYTHON) -c '$(new_enough)'
	@test -x $(or $(1),$(@D))/bin/pip || $(PYTHON) -m venv --clear $(or $(1),$(@D))
endef
pip_install = $(or $(1),$(@D))/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS)

# Compiles a library: its target, CMake's project, the build folder and the library's in there, options
# for CMake, and a command for $headers in them.
define build_library
	@command -v "$${CXX:-c++}" >/dev/null || { echo 'found no C++ compiler' >&2; exit 1; }
	@headers=$$($(6)) && \
	$(cmake) -S $(2) -B $(3) $(5) && \
	$(cmake) --build $(3) --target $(1) --parallel && \
	$(cmake) --install $(4) --prefix $(@D)
	@touch $@
endef
# One for GPUs: its target, its folder in the build, options, command. They share a build, for kernels take
# minutes to compile.
define build_gpu_library
	@command -v "$${CUDACXX:-nvcc}" >/dev/null || { echo 'found no nvcc, which comes with the CUDA toolkit' >&2; exit 1; }
	$(call build_library,$(1),native,$(build)/plugins-gpu,$(build)/plugins-gpu/$(2),-DCMAKE_CUDA_ARCHITECTURES='$(CUDA_ARCHITECTURES)' $(3),$(4))
endef
ort_option := -DORT_INCLUDE_DIR="$$headers"
ort_headers := $(plugins)/headers.sh $(build)

# A trained network in fp32 and int8: its name, further arguments for export.
define export_demo
	.venv-test/bin/tokenfold export $(demo)/checkpoints/$(1) --images $(build)/$(1)/held-out.zip --out $(demo)/bundles/$(1) $(2)
	.venv-test/bin/tokenfold bench $(demo)/bundles/$(1) --save
	.venv-test/bin/tokenfold export $(demo)/checkpoints/$(1) --precision int8 --images $(build)/$(1)/held-out.zip --out $(demo)/bundles/$(1)-int8 $(2)
	.venv-test/bin/tokenfold bench $(demo)/bundles/$(1)-int8 --save
endef

.PHONY: help
help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: serve
serve:  ## serve the built-in models on PORT, 8000 by default
	@# At the same time: one waits for the network while the other compiles.
	@$(MAKE) -s -j2 .venv/.installed optional-plugins
	export TOKENFOLD_DATA_DIR="$${TOKENFOLD_DATA_DIR:-$(build)/data}"; \
	exec .venv/bin/tokenfold serve --port $(PORT) --sample-gallery $(ARGS)

.PHONY: test
test: .venv-test/.installed optional-plugins  ## check the style, the types, and that all tests pass
	.venv-test/bin/ruff check .
	.venv-test/bin/ruff format --check .
	.venv-test/bin/mypy
	@# A file's tests stay together: they share servers and exports.
	.venv-test/bin/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile $(PYTEST_ARGS)

# compute-sanitizer comes with the CUDA toolkit. The large shapes take it too long, and no test of the
# others is late because of it.
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

# ViT's levels are those of the tables of CUDA; PuMer's are the usual ones.
gpu_levels := --levels exact=0$(comma)r8=r8$(comma)r13=r13$(comma)r16=r16 --default-level r8
gpu_reports := $(patsubst %,$(build)/gpu/%.json,vit-b16 vit-l16 vilt-b32)

.PHONY: bench-gpu
bench-gpu: $(gpu_reports)  ## measure TensorRT beside ONNX Runtime on a GPU, and write docs/gpu.md
	.venv-gpu/bin/python -m tokenfold.bench.gpu_tables $^ --into docs/gpu.md

$(build)/gpu/%.json: .venv-gpu/.installed
	.venv-gpu/bin/tokenfold export random:$* --precision fp16 $(if $(filter vit-%,$*),$(gpu_levels)) --out $(build)/gpu/$*
	.venv-gpu/bin/tokenfold bench $(build)/gpu/$* --backend tensorrt --beside cuda --static-levels --engines $(build)/gpu/engines --out $@

.PHONY: format
format: .venv-test/.installed  ## rewrite the Python code in the house's style
	.venv-test/bin/ruff check --fix .
	.venv-test/bin/ruff format .

.PHONY: bench
bench: .venv/.installed optional-plugins  ## measure every level of BUNDLE
	.venv/bin/tokenfold bench $(BUNDLE) $(ARGS)

.PHONY: load
load: .venv/.installed optional-plugins  ## compare the served throughput of BUNDLE with the bare session's
	.venv/bin/python -m load_tests.served_vs_bare $(BUNDLE) $(ARGS)

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

.PHONY: plugins
plugins: $(library)  ## compile the native ops for ONNX Runtime
	@:

.PHONY: plugins-cuda
plugins-cuda: $(cuda_library)  ## compile them for CUDA too, which needs nvcc and no GPU
	@:

.PHONY: plugins-tensorrt
plugins-tensorrt: $(tensorrt_library)  ## compile them as plugins of TensorRT, which needs nvcc, no GPU and no TensorRT
	@:

.PHONY: clean
clean:  ## remove what make made
	rm -rf $(build)/gpu .venv .venv-test .venv-gpu $(build)/plugins $(build)/plugins-gpu $(build)/plugins-gpu-test $(build)/cuda_host $(tools) $(build)/onnxruntime-headers
	rm -f $(library) $(cuda_library) $(tensorrt_library)

# Without a compiler or headers the same graphs run on their portable bodies: the same results, more slowly.
.PHONY: optional-plugins
optional-plugins:
	@$(MAKE) plugins || printf '%s\n' '' \
		'NOTICE: the native ops could not be built, for the reason above.' \
		'NOTICE: everything works without them, on portable ops that give the same results more slowly.' ''

.venv/.installed: pyproject.toml
	$(make_venv)
	$(pip_install) -e '.[cpu]'
	@touch $@

.venv-test/.installed: pyproject.toml
	$(make_venv)
	$(pip_install) '$(TORCH)'
	$(pip_install) '$(TORCH)' -e '.[cpu,export,test]'
	@touch $@

.venv-gpu/.installed: pyproject.toml
	$(make_venv)
	$(pip_install) '$(TORCH)'
	$(pip_install) '$(TORCH)' -e '.[gpu,export,test]'
	@# From NVIDIA's own index. Without it there is TensorRT for RTX, which the tests bring, for the GPUs that it knows.
	$(pip_install) -e '.[tensorrt]' && touch $@ || \
		printf '%s\n' '' 'NOTICE: TensorRT could not be installed, for the reason above; it is tried again the next time.' ''

$(library): $(plugins)/CMakeLists.txt $(sources) $(filter $(tools)/%,$(cmake))
	$(call build_library,tokenfold_ort,$(plugins),$(build)/plugins,$(build)/plugins,$(ort_option),$(ort_headers))

$(cuda_library): $(plugins)/CMakeLists.txt $(kernels)/CMakeLists.txt $(sources) $(cuda_sources) $(filter $(tools)/%,$(cmake))
	$(call build_gpu_library,tokenfold_ort,onnxruntime,$(ort_option),$(ort_headers))

$(tensorrt_library): $(cuda_sources) $(tensorrt_sources) $(filter $(tools)/%,$(cmake))
	$(call build_gpu_library,tokenfold_tensorrt,tensorrt,-DTENSORRT_INCLUDE_DIR='$(TENSORRT_INCLUDE_DIR)')

# One after the other, where both are asked for.
ifneq ($(filter plugins-cuda,$(MAKECMDGOALS)),)
$(tensorrt_library): | $(cuda_library)
endif

$(tools)/bin/cmake:
	$(call make_venv,$(tools))
	$(call pip_install,$(tools)) cmake
