# make demo: from pixels to plans in minutes.  make test: everything that CI checks.  Both set themselves up.
PYTHON ?= python3
VENV ?= .venv
READY := $(VENV)/.ready

.PHONY: demo test slow install clean

install: $(READY)

$(READY): requirements.txt setup.py
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 12) else \
		f"Python 3.10 to 3.12 is needed, {sys.executable} is {v[0]}.{v[1]}: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	# the pip of older Pythons searches for many minutes where a current one does not
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet --requirement requirements.txt
	# gym-pusht names pygame and opencv-python; pygame-ce and the headless OpenCV above serve it, and need no display
	$(VENV)/bin/python -m pip install --quiet --no-deps gym-pusht==0.1.8
	$(VENV)/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY)
	$(VENV)/bin/jepa demo

test: $(READY)
	$(VENV)/bin/python -m pytest

slow: $(READY)
	$(VENV)/bin/python -m pytest -m slow

clean:
	rm -rf $(VENV) build dist *.egg-info
