# Everything a fresh machine needs beside this checkout: Python >= 3.10, make and a package index.
#
#   make demo          train, calibrate, export, gate and inspect generated products; leaves demo/report.html
#   make test          the tests that every change must pass
#   make lint          ruff, mypy --strict, import arrows
#   make test-slow     the tests that take minutes: real engines of real networks
#   make test-station  tests with servers, brokers, camera emulators and a browser
#   make docs          the documentation site, in build/site
#   make test-wheel    every command from the built wheel, in environments without torch
#   make test-py310    the runtime's tests on Python 3.10 without torch (skipped where there is no python3.10)

PYTHON ?= python3
BIN := .venv/bin
EXTRAS := cpu,train,export,openvino,dev

.PHONY: demo docs test test-slow lint test-station test-py310 test-wheel clean

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "snl-edge needs Python >= 3.10, $(PYTHON) is $$($(PYTHON) -V); run: make PYTHON=python3.11"; exit 2; }
	@$(PYTHON) -m venv .venv || { echo "cannot make .venv; on Debian and Ubuntu install the package python3-venv, or run: make PYTHON=/path/to/another/python3"; exit 2; }
	@echo "installing the extras $(EXTRAS) into .venv (about 6 GB with torch, a few minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	@mkdir -p .venv/links && ln -sfn ../../export .venv/links/snl_export && ln -sfn ../../calibration .venv/links/snl_calibration
	@touch $@

demo: .venv/installed
	$(BIN)/python examples/demo.py --out demo

# A worker that crashes ends the run: pytest-xdist 3.8 starts another one in its place and then waits for ever where the tests of a file stay together.
test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --max-worker-restart=0 -m "not station and not slow and not gpu and not wheel"

test-slow: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --max-worker-restart=0 -m "slow and not gpu"

# Real brokers, servers, camera emulators and a browser. What Debian brings is installed where this is root; else what is missing is named, and the
# tests that need it are skipped with a reason.
STATION_PACKAGES := mosquitto chromium ffmpeg faketime python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly

test-station: .venv/installed
	@$(BIN)/python -c 'import pypylon, asyncua, pymodbus, paho, av, uvicorn, fastapi, prometheus_client, ray, pyarrow, httpx, playwright, moto, tritonclient' 2>/dev/null || \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[station,fleet,triton]' httpx playwright 'moto[server]'
	@missing=; for package in $(STATION_PACKAGES); do dpkg -s $$package >/dev/null 2>&1 || missing="$$missing $$package"; done; \
	if [ -n "$$missing" ]; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get install -y -qq $$missing >/dev/null || { apt-get update -qq && apt-get install -y -qq $$missing >/dev/null; } || echo "could not install:$$missing"; \
		else echo "not installed, so their tests are skipped:$$missing"; fi; \
	fi
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m station

# mypy sees export/ and calibration/ under the names they install as.
lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=.venv/links:. $(BIN)/mypy -p snl_runtime -p snl_train -p snl_export -p snl_calibration -p benchmarks.accuracy -p benchmarks.speed -p docs -m benchmarks.int8_gate -m benchmarks.realmix_line -m benchmarks.soak -m benchmarks.fleet_scaling -m benchmarks.fleet_coordination -m benchmarks.drift
	PYTHONPATH=.venv/links:. $(BIN)/lint-imports

# Installs the extra once; the build itself fetches nothing.
docs: .venv/installed
	@$(BIN)/python -c 'import material, mkdocstrings_handlers.python' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	$(BIN)/python -m docs.build_site --out build/site

# A python3.10 on the path, else one that pyenv installed.
PYTHON310 ?= $(shell python3.10 -c 'import sys; print(sys.executable)' 2>/dev/null || ls -1 $${PYENV_ROOT:-$$HOME/.pyenv}/versions/3.10*/bin/python3.10 2>/dev/null | tail -1)

test-py310:
ifeq ($(PYTHON310),)
	@echo "skipped: no python3.10 on this machine"
else
	@$(PYTHON310) -m venv .venv310
	@.venv310/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[cpu,openvino,sign]' pytest hypothesis onnx scipy
	OMP_NUM_THREADS=1 .venv310/bin/python -m pytest -q -m "not station and not slow and not gpu and not wheel and not shared" tests/runtime
endif

# Two bare environments: the wheel alone, and with the extra of a station without a GPU. A build folder left behind would end up in the wheel.
test-wheel: .venv/installed
	rm -rf build dist .venv-wheel
	$(BIN)/python -m build --wheel --outdir dist .
	rm -rf build
	@for name in base cpu; do \
		$(PYTHON) -m venv ".venv-wheel/$$name" || exit 1; \
		extras=$$([ "$$name" = base ] || echo "[$$name]"); \
		".venv-wheel/$$name/bin/python" -m pip install --quiet --disable-pip-version-check "$$(ls dist/*.whl)$$extras" || exit 1; \
	done
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m wheel tests/wheel

clean:
	rm -rf .venv .venv310 .venv-wheel demo build dist *.egg-info
