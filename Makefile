# make demo | make test: create .venv if there is none, install pinned requirements, build, run.
# make PYTHON=/path/to/python VENV= test: use that interpreter's environment (ROCm or CUDA torch) and install only blockdraft.
PYTHON ?= python3
VENV ?= .venv
BIN := $(if $(VENV),$(VENV)/bin,$(patsubst %/,%,$(dir $(shell command -v $(PYTHON)))))
INSTALL := $(BIN)/python3 -m pip install --disable-pip-version-check -q
READY := $(if $(VENV),$(VENV)/.blockdraft,build/.blockdraft)

.PHONY: demo test slow clean

demo: $(READY)
	$(BIN)/blockdraft demo

test: $(READY)
	$(BIN)/pytest

slow: $(READY)
	$(BIN)/pytest -m slow

$(READY): .ci/requirements.txt pyproject.toml setup.py $(wildcard csrc/*/*)
	$(if $(VENV),test -x $(BIN)/python3 || $(PYTHON) -m venv $(VENV))
	$(if $(VENV),$(INSTALL) -r .ci/requirements.txt)
	$(INSTALL) --no-build-isolation --no-deps -e .
	mkdir -p $(@D) && touch $@

clean:
	rm -rf build .venv python/*.egg-info python/blockdraft/*.so
