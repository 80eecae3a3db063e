# Everything starts with `make venv`, which the other targets run by themselves.
# Paths are relative throughout: make cannot name files in folders with spaces.

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip
TESTED := -c requirements/constraints-tested.txt
STAMP := $(VENV)/.installed
SHARED_OUT := -n auto --maxprocesses 8 --dist loadfile

# An interpreter of a supported version; the first that fits of a few names, or
# the one given: make venv PYTHON=/opt/python3.12/bin/python3
PYTHON ?=

.PHONY: help venv lint format test test-quick demo detection clean distclean
.DELETE_ON_ERROR:

help:
	@echo 'make venv        set up $(VENV) with the tested versions of everything'
	@echo 'make test        lint and the whole test suite'
	@echo 'make test-quick  the tests that take no longer than 5 seconds each'
	@echo 'make lint        ruff check and ruff format --check'
	@echo 'make format      let ruff mend what it can'
	@echo 'make demo        pretrain, fine-tune and compare on small images'
	@echo 'make detection   compile the MMCV operators that MMDetection needs'
	@echo 'make clean       remove caches; make distclean removes $(VENV) too'

venv: $(STAMP)
	@:

# In the last step, opencv-python's files are replaced by those of the headless
# build of the same version. Other packages require the former by name, but it
# needs libGL, which servers and containers lack.
$(STAMP): setup.py pyproject.toml ropim_mm/version.py $(wildcard requirements/*.txt)
	@set -e; \
	if ! $(PIP) --version >/dev/null 2>&1; then \
	    for python in "$(PYTHON)" python3 python3.11 python3.12 python3.10; do \
	        [ -n "$$python" ] || continue; \
	        if "$$python" -c 'import sys; sys.exit(not \
	            (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null; \
	        then found=$$python; break; fi; \
	        [ "$$python" != "$(PYTHON)" ] || break; \
	    done; \
	    if [ -z "$$found" ]; then \
	        echo 'Python 3.10, 3.11 or 3.12 is needed, and none was found' \
	            'as $(or $(PYTHON),python3 or python3.1x).' \
	            'Name one: make venv PYTHON=/path/to/python3' >&2; \
	        exit 1; \
	    fi; \
	    echo "[1/3] $$("$$found" --version) -> $(VENV)"; \
	    "$$found" -m venv --clear $(VENV); \
	fi; \
	echo '[2/3] Installing the packages. The first time downloads about' \
	    '3 GB, PyTorch and its CUDA libraries, and takes minutes.'; \
	$(PIP) install $(TESTED) -e '.[segmentation,detection,demo,tests]'; \
	echo '[3/3] OpenCV without a display'; \
	$(PY) -c 'from cv2.version import headless; assert headless' \
	    2>/dev/null || $(PIP) install -q --force-reinstall --no-deps \
	    $(TESTED) opencv-python-headless; \
	$(PY) -c 'import ropim_mm; print("ropim_mm", ropim_mm.__version__)'; \
	touch $(STAMP)

lint: venv
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: venv
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

# Tests of MMDetection are skipped where its operators cannot be compiled. Files
# of tests share out over the cores.
test: lint
	@$(MAKE) --no-print-directory detection || \
	    echo 'Tests that need the operators of MMCV are skipped.'
	$(PY) -m pytest $(SHARED_OUT)

test-quick: venv
	$(PY) -m pytest $(SHARED_OUT) -m 'not slow'

demo: venv
	$(PY) demo/run.py

# Into the environment that is there, for the PyTorch that is in it. pip keeps
# wheels it built without noting for which PyTorch, flags and devices, so each of
# these has a cache of its own. The flags build in two thirds of the time, 2 MB
# instead of 84; set CFLAGS for others, and FORCE_CUDA=1 for CUDA operators on a
# machine without a GPU.
detection: venv
	@set -e; \
	if $(PY) -c 'from ropim_mm.stack import require_detection as r; r()' \
	    2>/dev/null; then \
	    echo "MMCV's operators are there."; exit 0; \
	fi; \
	command -v c++ >/dev/null || { \
	    echo 'A C++ compiler is needed (Debian: apt install g++).' >&2; \
	    exit 1; }; \
	echo 'Compiling the MMCV operators: 6 minutes on 2 cores, once.'; \
	$(PIP) install -q 'setuptools>=80,<82' wheel packaging ninja psutil; \
	cache=--no-cache-dir; \
	if folder=$$($(PIP) cache dir 2>/dev/null); then \
	    name=$$($(PY) -c 'import os, torch, zlib; print( \
	        torch.__version__, \
	        "cuda" if torch.cuda.is_available() \
	        or os.environ.get("FORCE_CUDA") == "1" else "cpu", \
	        zlib.crc32(os.environ.get("CFLAGS", "").encode()), sep="-")'); \
	    cache="--cache-dir=$$folder/mmcv-for-torch-$$name"; \
	fi; \
	MMCV_WITH_OPS=1 CFLAGS="$${CFLAGS:--g0 -O1}" \
	    MAX_JOBS="$${MAX_JOBS:-$$(getconf _NPROCESSORS_ONLN)}" \
	    $(PIP) install $(TESTED) --no-build-isolation --no-deps \
	    "$$cache" --force-reinstall onedl-mmcv; \
	$(PY) -c 'from ropim_mm.stack import require_detection as r; r()'

clean:
	rm -rf build dist ropim_mm.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
