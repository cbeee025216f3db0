PYTHON ?= python3
VENV ?= .venv

bin := $(VENV)/bin
sources := $(shell find backend csrc sda_fast -type f -not -name '*.pyc' -not -path '*/.*')
operator_tests := python_tests/test_ops.py python_tests/test_ops_layout.py \
    python_tests/test_ops_steps.py python_tests/test_ops_observations.py \
    python_tests/test_ops_fields.py python_tests/test_winograd.py
packages := import sysconfig; print(sysconfig.get_path('purelib'))
pip = $(bin)/python -m pip install --quiet -c constraints.txt
# With the environment's own tools: an isolated build's move, and all would be compiled again.
install = $(pip) --no-build-isolation -e

.PHONY: help demo kolmogorov test sanitize tsan lint format bench bench-full clean

help:  ## List the targets.
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/make \1\t\2/p' $(MAKEFILE_LIST)

# torch, which the build then uses, and what builds.
$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(pip) torch 'scikit-build-core>=0.11' 'pybind11>=3' 'cmake>=3.25' ninja
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml CMakeLists.txt $(sources)
	$(install) '.[plot]'
	@touch $@

$(VENV)/.kolmogorov: $(VENV)/.torch pyproject.toml CMakeLists.txt $(sources)
	$(install) '.[kolmogorov,plot]'
	@touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml CMakeLists.txt $(sources)
	$(install) '.[dev]'
	@touch $@

demo: $(VENV)/.demo  ## Assimilate a chaotic trajectory; writes demo.png and demo.npz.
	$(bin)/python -m sda_fast demo

kolmogorov: $(VENV)/.kolmogorov  ## Assimilate a turbulent flow; writes to runs/kolmogorov.
	$(bin)/python -m experiments.kolmogorov sparse

test: $(VENV)/.dev  ## Run the tests.
	$(bin)/python -m pytest

# Builds the preset of the target's name, and a copy of the package with that library.
define build_instrumented
	PATH="$(abspath $(bin)):$$PATH" $(bin)/cmake --preset $@ --log-level=WARNING \
	    -DCMAKE_CXX_COMPILER=$(CXX) -DPython_EXECUTABLE="$(abspath $(bin))/python"
	PATH="$(abspath $(bin)):$$PATH" $(bin)/cmake --build --preset $@
	rm -rf build/$@/python && mkdir -p build/$@/python
	tar c --exclude=__pycache__ sda_fast | tar x -C build/$@/python
	cp build/$@/_C.*.so build/$@/python/sda_fast/
endef

# Runs tests, its second argument, with it, and what its first adds to the environment. Python runs
# without `site`, or the package that is installed editable would be found first.
run_instrumented = PYTHONPATH="build/$@/python:$$($(bin)/python -c "$(packages)")" $(options) $1 \
	LD_PRELOAD="$(foreach l,$(runtime) libstdc++.so.6,$$($(CXX) -print-file-name=$l))" \
	$(launcher) $(bin)/python -S $(bin)/pytest -p no:cacheprovider --capture=sys $2

sanitize: runtime := libasan.so
sanitize: options := OMP_NUM_THREADS=1 ASAN_OPTIONS=detect_leaks=0 \
    UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
sanitize: tests := $(operator_tests) python_tests/test_fuzz.py python_tests/test_fuzz_networks.py \
    python_tests/test_fused.py python_tests/test_fused_unet.py \
    -k "not every_instruction_set and not compil and not opcheck and not registered"
sanitize: avx2_tests := python_tests/test_fused.py \
    -k "shapes or activations or widths or junction or kept or threads or refuses"
sanitize: $(VENV)/.dev  ## Run the operators' tests with sanitizers.
	$(build_instrumented)
	$(call run_instrumented,,$(tests))
	if grep -qsw avx2 /proc/cpuinfo; then \
	    $(call run_instrumented,SDA_FAST_ISA=avx2,$(avx2_tests)); fi

# Addresses that are not random: ThreadSanitizer has room for those of few systems' randomness.
tsan: runtime := libtsan.so
tsan: options := TSAN_OPTIONS=ignore_noninstrumented_modules=1
tsan: launcher := setarch -R
tsan: tests := $(operator_tests) python_tests/test_fused.py -k threads
tsan: $(VENV)/.dev  ## Run the operators' tests of several threads with ThreadSanitizer.
	$(build_instrumented)
	$(call run_instrumented,,$(tests))

lint: $(VENV)/.dev  ## Check the format, the style and the types.
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu')
	$(bin)/mypy

format: $(VENV)/.dev  ## Format the sources.
	$(bin)/ruff check --fix-only --quiet .
	$(bin)/ruff format .
	$(bin)/clang-format -i $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu')

bench: $(VENV)/.dev  ## Time operators, networks, samples and training steps, in five minutes.
	$(bin)/python -m pytest benchmarks -m 'not slow' --benchmark-only --benchmark-group-by=group \
	    --benchmark-columns=min,median,max --benchmark-max-time=0.1 --benchmark-min-rounds=3

bench-full: $(VENV)/.dev  ## Time all of it in some hours, and keep the numbers in benchmarks/results.
	$(bin)/python -m benchmarks.report --full
	$(bin)/python -m benchmarks.profile
	$(bin)/python -m benchmarks.memory

clean:  ## Remove the environment and what was built.
	rm -rf $(VENV) build dist
