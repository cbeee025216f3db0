PYTHON ?= python3
VENV ?= .venv

bin := $(VENV)/bin
sources := $(shell find backend csrc sda_fast -type f -not -name '*.pyc' -not -path '*/.*')
install = $(bin)/python -m pip install --quiet -c constraints.txt

.PHONY: help demo test lint format bench clean

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
