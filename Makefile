# make demo    toy domains, three networks and a report, from nothing
# make test    lint and tests, from nothing
# make study   the demo's networks over 3 seeds, all variants, two styles
# make parity  the full-size comparison with PyTorch
VENV ?= .venv
PYTHON ?= python3
RUN := $(VENV)/bin/python
PIP := $(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint study parity clean

demo: $(VENV)/.runs
	$(RUN) scripts/demo.py --out runs/demo

test: lint
	$(RUN) -m pytest -n 2 --dist loadfile

lint: $(VENV)/.tests
	$(VENV)/bin/ruff check .

study: $(VENV)/.runs
	$(RUN) scripts/toy_study.py --out runs/toy_study

parity: $(VENV)/.tests
	$(RUN) -m pytest -m full tests/parity

$(VENV)/.venv:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.runs: $(VENV)/.venv pyproject.toml requirements.txt constraints.txt
	$(PIP) -e .
	touch $@

$(VENV)/.tests: $(VENV)/.runs requirements-dev.txt
	$(PIP) -r requirements-dev.txt
	touch $@

clean:
	rm -rf runs/demo runs/toy_study
