# make demo | make test: create .venv if there is none, install pinned requirements, build, run.
# make wheel: into dist, for Linux on x86-64 with glibc 2.28 or later. make wheel-check: that wheel, in
# environments of its own, which pip fills.
# make lint: formatting and static checks. make slow: the proofs that take long.
# make PYTHON=/path/to/python VENV= test: use that interpreter's environment (ROCm or CUDA torch) and
# install only blockdraft.
PYTHON ?= python3
VENV ?= .venv
ENVIRONMENT := $(if $(VENV),$(VENV)/bin/python3,$(PYTHON))
BIN := $(if $(VENV),$(VENV)/bin,$(shell $(PYTHON) -c "import sysconfig; print(sysconfig.get_path('scripts'))"))
INSTALL := $(ENVIRONMENT) -m pip install --disable-pip-version-check -q
READY := $(if $(VENV),$(VENV),build/$(subst /,_,$(PYTHON)))/.blockdraft
NATIVE := $(shell find csrc -type f)

.PHONY: demo test lint slow wheel wheel-check clean

demo: $(READY)
	$(BIN)/blockdraft demo

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto
	OMP_NUM_THREADS=1 $(BIN)/pytest -q tests/bench_quick.py --benchmark-only

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run --Werror $(filter %.h %.cpp %.hip,$(NATIVE) $(wildcard tests/support/*))

slow: $(READY)
	$(BIN)/pytest -m slow

wheel: $(READY)
	rm -rf build/lib.* build/wheel
	CXX=$(CURDIR)/.ci/manylinux-c++ PATH="$(abspath $(BIN)):$$PATH" $(ENVIRONMENT) -m pip wheel \
		--no-build-isolation --no-deps --no-cache-dir -w build/wheel .
	PATH="$(abspath $(BIN)):$$PATH" auditwheel repair --plat manylinux_2_28_x86_64 --only-plat --strip \
		--exclude 'libtorch*' --exclude 'libc10*' -w dist build/wheel/*.whl

wheel-check: $(READY)
	$(BIN)/pytest -m slow -s tests/test_wheel.py --wheel $(lastword $(wildcard dist/*.whl))

$(READY): .ci/requirements.txt pyproject.toml setup.py $(NATIVE)
	$(if $(VENV),test -x $(ENVIRONMENT) || $(PYTHON) -m venv $(VENV))
	$(if $(VENV),$(INSTALL) -r .ci/requirements.txt)
	$(INSTALL) --no-build-isolation --no-deps -e .
	mkdir -p $(@D) && touch $@

clean:
	rm -rf build .venv python/*.egg-info python/blockdraft/*.so
