# make demo   the whole flow on the built-in corpus
# make test   checks and tests
# make check  format, lint, types, import rules, docker files
# make bench  measured ratios against peers, written to bench.json
# Each makes its own environment first: nothing but Python 3.11 or newer is needed.

PYTHON ?= python3
BIN := .venv/bin
# uv does not read pip's settings: hand it the folder of local wheels pip is configured with, if any
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
export PYTHONWARNINGS ?= ignore::SyntaxWarning

.PHONY: demo test check bench clean

demo: .venv/ready
	$(BIN)/cocu demo

test: check
	$(BIN)/pytest -q -n 2 --dist loadfile $(PYTEST)

check: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/hadolint docker/*.Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker/compose.yaml

bench: .venv/ready
	$(BIN)/python -m benchmarks.run

.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	touch $@

clean:
	rm -rf .venv
