# make demo   sets everything up and prunes the sample model
# make test   sets everything up and runs the tests (SLOW=1: the slow ones too)
PYTHON ?= python3
BIN := .venv/bin
DIGITS := sample_models/digits

.PHONY: demo test check clean

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/dev: .venv/installed
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

demo: .venv/installed
	mkdir -p build
	$(BIN)/onnxcompress prune $(DIGITS).onnx -o build/digits.small.onnx --amount 0.5 \
		--data $(DIGITS).npz --labels $(DIGITS)_labels.npz

test: .venv/dev
	$(BIN)/python -m pytest -q -n 2 $(if $(SLOW),-m "slow or not slow")

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf .venv build
