PYTHON ?= python3
VENV ?= .venv

bin := $(VENV)/bin
sources := $(shell find backend csrc sda_fast -type f -not -name '*.pyc' -not -path '*/.*')
sanitized := build/sanitize/python
packages := import sysconfig; print(sysconfig.get_path('purelib'))
install = $(bin)/python -m pip install --quiet -c constraints.txt

.PHONY: help demo test sanitize lint format bench clean

help:  ## List the targets.
	@sed -n 's/^\([a-z]*\):.*##  *\(.*\)/make \1\t\2/p' $(MAKEFILE_LIST)

# torch first: the build then uses it, and asks for no other.
$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(install) torch
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml CMakeLists.txt $(sources)
	$(install) -e '.[plot]'
	@touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml CMakeLists.txt $(sources)
	$(install) -e '.[dev]'
	@touch $@

demo: $(VENV)/.demo  ## Assimilate a chaotic trajectory; writes demo.png and demo.npz.
	$(bin)/python -m sda_fast demo

test: $(VENV)/.dev  ## Run the tests.
	$(bin)/python -m pytest

# A copy of the package with the library of the preset. Python runs without `site`, or the package
# that is installed editable would be found first.
sanitize: $(VENV)/.dev  ## Run the operators' tests with sanitizers.
	PATH="$(abspath $(bin)):$$PATH" $(bin)/cmake --preset sanitize --log-level=WARNING \
	    -DCMAKE_CXX_COMPILER=$(CXX) -DPython_EXECUTABLE="$(abspath $(bin))/python"
	PATH="$(abspath $(bin)):$$PATH" $(bin)/cmake --build --preset sanitize
	rm -rf $(sanitized) && mkdir -p $(sanitized) && cp -r sda_fast $(sanitized)/
	cp build/sanitize/_C.*.so $(sanitized)/sda_fast/
	PYTHONPATH="$(sanitized):$$($(bin)/python -c "$(packages)")" OMP_NUM_THREADS=1 \
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so.6)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
	$(bin)/python -S $(bin)/pytest -p no:cacheprovider python_tests/test_ops.py \
	    python_tests/test_ops_layout.py python_tests/test_ops_steps.py \
	    python_tests/test_ops_observations.py python_tests/test_fuzz.py \
	    -k "not every_instruction_set and not compil and not opcheck"

lint: $(VENV)/.dev  ## Check the format, the style and the types.
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu')
	$(bin)/mypy

format: $(VENV)/.dev  ## Format the sources.
	$(bin)/ruff check --fix-only --quiet .
	$(bin)/ruff format .
	$(bin)/clang-format -i $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu')

bench: $(VENV)/.dev  ## Time the native operators against the reference.
	$(bin)/python -m pytest benchmarks -m 'not slow' --benchmark-only --benchmark-group-by=group \
	    --benchmark-columns=min,median,max --benchmark-max-time=0.3 --benchmark-min-rounds=3

clean:  ## Remove the environment and what was built.
	rm -rf $(VENV) build dist
