# Everything here works on a machine that has Python 3.11, pip, gcc and make: each target makes what it needs.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# A package that is built from source here (ALFWorld's planner, for the tests) calls `python` for the venv's own.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# torch by its exact version first: a version range would take a build with gigabytes of CUDA packages.
TORCH := $(shell grep -E '^torch==' constraints.txt)

# What `make run` and `make compare` compare; override on the command line: make compare ENV=Hopper-v5 SEEDS=5
RECIPES ?= props ppo
ENV ?= Walker2d-v5
STEPS ?= 60000
SEEDS ?= 3
OUT ?= runs/first
# The same batch size, step size and entropy bonus for every recipe: only how experience is gathered differs.
MATCHED := --num-envs 8 --batch-steps 2048 --learning-rate 1e-3 --entropy-coefficient 0.01

.PHONY: install run compare postgresql test lint bench clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip==26.2
	$(BIN)/pip install --quiet --constraint constraints.txt $(TORCH)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

.venv/installed-bench: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	touch $@

run: install
	$(BIN)/peira compare $(RECIPES) --env $(ENV) --steps $(STEPS) --seeds $(SEEDS) --out $(OUT) $(MATCHED)

compare: run

# The browser of the tests of web pages.
/usr/bin/chromium /usr/bin/chromedriver:
	apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium chromium-driver

# PostgreSQL, whose servers the tests of the decision service start and throw away: any version that is there will do.
POSTGRESQL := $(or $(firstword $(wildcard /usr/lib/postgresql/*/bin/initdb)),postgresql)

postgresql:
	apt-get update -qq && apt-get install -y -qq --no-install-recommends postgresql

test: install /usr/bin/chromium /usr/bin/chromedriver $(POSTGRESQL)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

bench: .venv/installed-bench
	$(BIN)/python benchmarks/ppo.py --out benchmarks/ppo.json
	$(BIN)/python benchmarks/store.py --json benchmarks/store.json
	$(BIN)/python benchmarks/language.py --out benchmarks/language.json
	$(BIN)/python benchmarks/browser.py --out benchmarks/browser.json
	$(BIN)/python benchmarks/bandits.py --out benchmarks/bandits.json
	$(BIN)/python benchmarks/serving.py --out benchmarks/serving.json
	$(BIN)/python benchmarks/natural_gradient.py --out benchmarks/natural_gradient.json

clean:
	rm -rf .venv runs build dist *.egg-info
