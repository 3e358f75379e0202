# Everything runs in .venv, made here from requirements.lock (pinned, with hashes).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
RUN := runs/demo

.PHONY: demo test test-slow check format lock benchmarks families clean

demo: $(READY)  ## photos -> trained, quantized, measured: one table
	$(BIN)/python -m recipes.fine_tune --data elpv --backbone EfficientNetLite0 --augment symmetries --epochs 8 --out $(RUN)
	$(BIN)/python -m export.convert $(RUN)
	$(BIN)/python -m export.evaluate $(RUN)
	$(BIN)/python -m export.benchmark $(RUN)
	$(BIN)/python -m export.report $(RUN)

test: $(READY)
	$(BIN)/python -m pytest

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmarks: $(READY)  ## the figures of docs/measurements.md
	for name in startup decoding latency feature_extraction accuracy fine_tuning normalization quantization; do $(BIN)/python -m benchmarks.$$name || exit; done

families: $(READY)  ## after a change that lets a backbone take a scheme, or no longer
	$(BIN)/python -m export.families

lock:  ## after a change of dependencies in pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --python-version 3.11 \
		--extra dev pyproject.toml --output-file requirements.lock

clean:
	rm -rf $(VENV) build dist *.egg-info

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(not (3, 11) <= v[:2] <= (3, 13))' || \
		{ echo "edgetl needs Python 3.11, 3.12 or 3.13; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
