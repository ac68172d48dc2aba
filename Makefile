# The chores. `make demo` and `make test` set up everything they need.
PYTHON ?= python3
RUN := .venv/bin/python

.PHONY: help demo serve test test-all test-vulkan check docs bench bump environment generated clean
help:            ## show this
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

environment:     ## .venv with moebind, built in place, and all tools
	@$(PYTHON) tools/environment.py

demo: environment ## a real mixture-of-experts model, its experts in host memory, and what that saves; DEVICE=Vulkan0 chooses
	@$(RUN) examples/demo.py $(if $(DEVICE),--device $(DEVICE)) $(if $(TOKENS),--tokens $(TOKENS))

serve: environment ## the demo's model in a browser, and over HTTP
	@$(RUN) -m moebind serve "$$($(RUN) examples/demo_model.py)"

# A file's tests stay together: they share models and workers.
TESTS := $(RUN) -m pytest -n auto --maxprocesses 8 --dist loadfile -q

test: environment ## the tests: what is quick, and all that guards experts in host memory
	$(TESTS) -m "not thorough"

test-all: test   ## all tests: after those above, those that take long
	$(TESTS) -m thorough

test-vulkan: environment ## tests/gpu on Mesa's software driver for Vulkan; skipped where that is not there
	MOEBIND_GPU_TESTS=vulkan $(TESTS) -rs tests/gpu

check: environment ## lint, format, types, import contract, generated files
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	$(RUN) tools/params_methods.py --check
	$(RUN) tools/c_api_table.py --check
	$(RUN) tools/house.py --check
	$(RUN) cmake/bundled.py --check

docs: environment ## the documentation, in docs/_build/html
	$(RUN) -m sphinx -nW --keep-going -q -b html docs docs/_build/html
	@echo docs/_build/html/index.html

bench: environment ## speed beside llama.cpp's own benchmarks and llama-cpp-python, on the same libraries
	$(RUN) benchmarks/speed.py

bump:            ## another llama.cpp: make bump VERSION=2026.10.11549
	@.venv/bin/python tools/bump.py $(VERSION)

generated: environment ## write the generated files again
	$(RUN) tools/params_methods.py
	$(RUN) tools/c_api_table.py
	$(RUN) tools/house.py
	$(RUN) cmake/bundled.py

clean:           ## remove what was built, not what was downloaded
	rm -rf build .venv docs/_build
