# Everything runs in .venv, made here from requirements.lock (pinned, with hashes).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
UV := $(BIN)/uv --no-config
RUN := runs/demo

# Software that edgetl did not write and that reads what it writes. MediaPipe asks for another absl-py than
# ai-edge-quantizer, so it has an environment of its own; so does an old board's Python 3.9.
CLIENTS := .venv-clients
OLD := .venv-old
PYTHONS := 3.11 3.12 3.13
PROGRAMS := chromium sshd:openssh-server ssh:openssh-client adb g++ npm ps:procps

.PHONY: demo test test-pythons test-slow test-reliability test-clients test-clients-slow programs check format lock benchmarks families clean

demo: $(READY)  ## photos -> trained, quantized, measured: one table
	$(BIN)/python -m recipes.fine_tune --data elpv --backbone EfficientNetLite0 --augment symmetries --epochs 8 --out $(RUN)
	$(BIN)/python -m export.convert $(RUN)
	$(BIN)/python -m export.evaluate $(RUN)
	$(BIN)/python -m export.benchmark $(RUN)
	$(BIN)/python -m export.report $(RUN)

test: $(READY)  ## a process per core; a file's tests stay together, as they share what they made
	$(BIN)/python -m pytest -n auto --dist loadfile

test-pythons: $(READY)  ## the same on every Python that edgetl supports and that is here
	@for version in $(PYTHONS); do \
		if ! PYENV_VERSION=$$version $(UV) venv --quiet --clear --no-python-downloads --python $$version .venv-$$version; then \
			echo "no Python $$version here: edgetl is not tested on it"; continue; \
		fi; \
		$(UV) pip install --quiet --python .venv-$$version --require-hashes -r requirements.lock && \
		$(UV) pip install --quiet --python .venv-$$version --no-deps --no-build-isolation -e . && \
		.venv-$$version/bin/python -m pytest -n auto --dist loadfile || exit; \
	done

test-slow: $(READY)
	$(BIN)/python -m pytest -m "slow and not clients and not browser" --ignore tests/reliability

test-reliability: $(READY)  ## kill -9, full disks, hostile files, leaks: half an hour, counts at the end
	$(BIN)/python -m pytest tests/reliability -m "not clients" -n auto --dist loadfile --no-loadscope-reorder

test-clients-slow: $(READY) $(CLIENTS)/.installed  ## every family on tflite-micro and Vela
	$(CLIENTS)/bin/python -m pytest -m "(clients or browser) and slow"

test-clients: $(READY) $(CLIENTS)/.installed $(OLD)/.installed programs  ## the file in other people's software, a browser, over ssh
	$(CLIENTS)/bin/python -m pytest -m "(clients or browser) and not slow"

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmarks: $(READY)  ## the figures of docs/measurements.md; after `make demo`
	for name in startup decoding latency feature_extraction accuracy fine_tuning normalization quantization audit \
		choose_backbone heads scaling distillation; do $(BIN)/python -m benchmarks.$$name || exit; done
	$(BIN)/python -m benchmarks.evaluation $(RUN)

families: $(READY)  ## after a change that lets a backbone take a scheme, or no longer
	$(BIN)/python -m export.families

lock:  ## after a change of dependencies in pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --python-version 3.11 \
		--extra dev pyproject.toml --output-file requirements.lock
	cp requirements.lock requirements-clients.lock
	echo 'absl-py>=2.3' | $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate \
		--python-version 3.11 --extra dev --extra s3 --extra gcs --extra tfds --extra mcu --extra ethos-u --override /dev/stdin pyproject.toml \
		requirements-clients.in --output-file requirements-clients.lock
	$(BIN)/uv pip compile --quiet --generate-hashes --no-header --no-annotate --python-version 3.9 \
		requirements-old.in --output-file requirements-old.lock

clean:
	rm -rf $(VENV) $(CLIENTS) $(OLD) $(PYTHONS:%=.venv-%) build dist *.egg-info

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(not (3, 11) <= v[:2] <= (3, 13))' || \
		{ echo "edgetl needs Python 3.11, 3.12 or 3.13; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(CLIENTS)/.installed: requirements-clients.lock $(READY)
	$(UV) venv --quiet --clear --python $(BIN)/python $(CLIENTS)
	$(UV) pip install --quiet --python $(CLIENTS) --no-deps --require-hashes -r requirements-clients.lock
	$(UV) pip install --quiet --python $(CLIENTS) --no-deps --no-build-isolation -e .
	@touch $@

$(OLD)/.installed: requirements-old.lock $(READY)
	@if PYENV_VERSION=3.9 $(UV) venv --quiet --clear --python 3.9 $(OLD); then \
		$(UV) pip install --quiet --python $(OLD) --require-hashes -r requirements-old.lock; \
	else echo "no Python 3.9 here: that old boards run the device program is not tested"; mkdir -p $(OLD); fi
	@touch $@

programs:
	@missing=; for each in $(PROGRAMS); do command -v $${each%:*} >/dev/null || missing="$$missing $${each#*:}"; done; \
	[ -z "$$missing" ] || { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq --no-install-recommends $$missing; } || \
		{ echo "test-clients needs:$$missing. Install them and try again"; exit 2; }
