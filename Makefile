# make install the package and what it needs, into .venv
# make demo    toy domains, four networks and a report, from nothing
# make test    lint and tests, from nothing
# make study   the demo's networks over 3 seeds, all variants, two styles
# make docs    docs/configuration.md from the table of keys
# make parity  the full-size comparison with PyTorch
# make check-hlo   what the full-size steps become on an H200, compiled without one
# make check-install   the wheel in new environments of Python 3.11, 3.12 and 3.13
# make check-core PYTHON=python3.12   the core's tests on another Python, with the newest JAX
# make bench-step  a training step against PyTorch's, timed on this machine
VENV ?= .venv
PYTHON ?= python3
RUN := $(VENV)/bin/python
PIP := $(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt
# Large pages for what XLA allocates: a step on a CPU took 13 to 25 % less (docs/performance.md).
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
# XLA uses half of AVX-512 unless told: a step of ResNet-101 took 2 to 8 % less.
demo study bench-step: export XLA_FLAGS ?= --xla_cpu_prefer_vector_width=512

.PHONY: demo install test lint study docs parity check-hlo check-install check-core bench-step clean

demo: $(VENV)/.runs
	$(RUN) scripts/demo.py --out runs/demo

install: $(VENV)/.runs

test: lint
	$(RUN) -m pytest -n 2 --dist loadfile

lint: $(VENV)/.tests
	$(VENV)/bin/ruff check .

study: $(VENV)/.runs
	$(RUN) scripts/study.py --out runs/toy_study

docs: $(VENV)/.runs
	$(RUN) -c "from snr_jax.config import listing; print(listing.page(), end='')" \
		> docs/configuration.md

parity: $(VENV)/.tests
	$(RUN) -m pytest -m full tests/parity

check-hlo: $(VENV)/aot/.done
	PYTHONPATH=$(VENV)/aot $(RUN) scripts/check_hlo.py

check-install: $(VENV)/.runs
	$(RUN) scripts/check_install.py

check-core: $(VENV)/.venv
	$(PYTHON) -m venv --clear $(VENV)/core
	$(VENV)/core/bin/pip install --quiet --disable-pip-version-check -r requirements-base.txt pytest
	$(VENV)/core/bin/python -m pytest tests/core

bench-step: $(VENV)/.tests
	$(RUN) scripts/bench_step.py --out runs/bench_step.json

$(VENV)/aot/.done: $(VENV)/.runs requirements-aot.txt
	$(PIP) --no-deps --upgrade --target $(VENV)/aot -r requirements-aot.txt
	touch $@

$(VENV)/.venv:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.runs: $(VENV)/.venv pyproject.toml requirements-base.txt requirements.txt constraints.txt
	$(PIP) -e '.[train]'
	touch $@

$(VENV)/.tests: $(VENV)/.runs requirements-dev.txt
	$(PIP) -r requirements-dev.txt
	touch $@

clean:
	rm -rf runs/demo runs/toy_study
