# Everything here works on a machine that has Python 3.11, pip, gcc and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
TORCH := $(shell grep -E '^torch==' constraints.txt)
STEPS ?= 100000
SEEDS ?= 3
ENV ?= Hopper-v5

.PHONY: install install-bench run test lint bench compare clean

install: .venv/.installed

# torch by its exact version first: a version range would take a build with gigabytes of CUDA packages.
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip==26.2 setuptools
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

.venv/.installed-bench: .venv/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	touch $@

install-bench: .venv/.installed-bench
