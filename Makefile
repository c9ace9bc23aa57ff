# The two commands for a newcomer: `make demo` and `make test`. Everything happens inside .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := pip-ros,sim,sun,train,radio,viz,dev

.PHONY: demo test benchmark check-dependencies lint clean help

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/'

$(STAMP): setup.py
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(f"xmodal_seg needs Python 3.10 or newer; {sys.executable} is {v[0]}.{v[1]}: use make PYTHON=...") if v < (3, 10) else None'
	@echo "Setting up $(VENV) (about 3 minutes and 7 GB, 11 while it installs; once)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip wheel
	$(BIN)/python -m pip install --quiet -e ".[$(EXTRAS)]"
	@touch $@

demo: $(STAMP) ## label a bag (BAG=folder, else a generated one) with the real nodes; results in demo/
	$(BIN)/python -m xmodal_seg.commands demo $(if $(BAG),--bag "$(BAG)") --out demo

test: lint ## every test that needs no GPU and no ROS installation
	$(BIN)/python -m pytest

benchmark: $(STAMP) ## time per stage of a frame; writes test/benchmark/results/
	$(BIN)/python test/benchmark/run.py

check-dependencies: $(STAMP) ## that the dependency ranges resolve on Python 3.10, 3.11 and 3.12
	$(BIN)/python test/check_dependency_ranges.py

lint: $(STAMP) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy training/*.py test/benchmark/*.py

clean: ## remove the environment and results of the demo
	rm -rf $(VENV) demo build install log .pytest_cache .mypy_cache .ruff_cache
