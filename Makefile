# make demo | test | test-gpu | coverage | check | torture | venv      (Python 3.11+, nothing else needed)
PYTHON ?= python3
BIN := .venv/bin

.PHONY: venv demo test test-gpu coverage check torture clean
venv: .venv/ready

# Rebuilt when the requirements change, else at once.
.venv/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: venv
	$(BIN)/simv0 demo

test: venv
	$(BIN)/python -m pytest -n auto --maxprocesses 8

# What a GPU computes, on a GPU; `make test` hides it.
GPU_TESTS := baselines cache cache_resume cli compiled encoder fast_llm fit llm llm_refusals model resume resume_points stream stream_alarm stream_input stream_parity
test-gpu: venv
	SIMV0_TEST_GPU=1 $(BIN)/python -m pytest $(foreach name,$(GPU_TESTS),$(wildcard tests/*/test_$(name).py tests/*/*/test_$(name).py))

coverage: venv
	$(BIN)/python -m pytest --cov --cov-report=term

check: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

torture: venv
	$(BIN)/python tests/torture/torture_cache.py
	$(BIN)/python tests/torture/torture_train.py

clean:
	rm -rf .venv runs
