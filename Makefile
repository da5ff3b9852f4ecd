# make figures [PROFILE=demo] [DATA=dir] [OUT=.] [SEED=0] [JOBS=2] [PYTHON=python3]
# make test [SLOW=1] [JOBS=2] | lab | bench [OUT=dir] | book [PROFILE=demo] [OUT=.] | clean | clean-all
# Every target makes .venv by itself. Variables may also come from the environment.

PYTHON  ?= python3
PROFILE ?= demo
DATA    ?=
OUT     ?= .
SEED    ?= 0
JOBS    ?= 2
SLOW    ?=

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.PHONY: figures test lab bench book clean clean-all
.DEFAULT_GOAL := figures

# The stamp holds the interpreter's version: another Python makes a new environment.
version := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
ifneq ($(shell cat .venv/.installed 2>/dev/null),$(version))
.PHONY: .venv/.installed
endif

# constraints.txt pins the tested CPU install; on a GPU machine, or another Python, ranges decide.
.venv/.installed: pyproject.toml constraints.txt
	@case "$(version)" in 3.11|3.12) ;; *) \
	  echo "PYTHON=$(PYTHON) is version '$(version)': install Python 3.11 or 3.12 and name it by PYTHON=..." >&2; \
	  exit 1;; esac
	@rm -f .venv/.installed
	@if [ -d .venv ] && ! .venv/bin/python -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != "$(version)")' 2>/dev/null; \
	  then rm -rf .venv; fi
	@[ -d .venv ] || "$(PYTHON)" -m venv .venv
	@if [ "$(version)" = 3.11 ] && ! command -v nvidia-smi >/dev/null; then pins="-c constraints.txt"; else pins=""; fi; \
	  echo "installing into .venv (about 2 minutes) $$pins"; \
	  .venv/bin/python -m pip install --quiet --disable-pip-version-check $$pins -e ".[dev]"
	@echo "$(version)" > .venv/.installed

# Whatever a library caches goes below OUT/.cache: nothing is written to the home directory.
define in_out
mkdir -p "$(OUT)"; out="$$(cd "$(OUT)" && pwd -P)"; cache="$$out/.cache"; \
export IPYTHONDIR="$$cache/ipython" JUPYTER_RUNTIME_DIR="$$cache/jupyter-runtime" \
  JUPYTER_CONFIG_DIR="$$cache/jupyter-config" JUPYTER_DATA_DIR="$$cache/jupyter-data" \
  MPLCONFIGDIR="$$cache/matplotlib" NUMBA_CACHE_DIR="$$cache/numba" XDG_CACHE_HOME="$$cache" \
  TMPDIR="$$cache/tmp" MVH_HOME="$(CURDIR)" MVH_CACHE="$${MVH_CACHE:-$$cache/mvhlib}" \
  JUPYTER_PREFER_ENV_PATH=1 PYTHONDONTWRITEBYTECODE=1; \
mkdir -p "$$cache/tmp" "$$cache/matplotlib"
endef

figures: .venv/.installed
	@$(in_out); data=""; \
	if [ -n "$(DATA)" ]; then \
	  [ -d "$(DATA)" ] || { echo "DATA=$(DATA): is not a directory. Fix: name the data set's folder." >&2; exit 2; }; \
	  data="$$(cd "$(DATA)" && pwd)"; fi; \
	.venv/bin/python -m snakemake --snakefile workflow/Snakefile --directory "$$out" --cores "$(JOBS)" \
	  --nolock --rerun-incomplete --keep-going --quiet rules progress host \
	  --config profile="$(PROFILE)" data="$$data" seed="$(SEED)"

test: .venv/.installed
	@$(in_out); export OMP_NUM_THREADS="$${OMP_NUM_THREADS:-1}"; .venv/bin/python -m pytest -q -rs \
	  -p no:cacheprovider -n "$(JOBS)" --dist loadfile tests $(if $(SLOW),,-m "not slow")

lab: .venv/.installed
	@$(in_out); .venv/bin/jupyter lab --notebook-dir="$(CURDIR)"

bench: .venv/.installed
	@$(in_out); bench="$(if $(filter .,$(OUT)),benchmarks,$$out)"; \
	for script in benchmarks/*.py; do .venv/bin/python "$$script" --out "$$bench"; done

# The executed notebooks as static pages. Of real data they hold tissue: book/ is never committed.
book: .venv/.installed
	@$(in_out); .venv/bin/python -m mvhlib.book "$$out/runs/$(PROFILE)" "$$out/book/$(PROFILE)"

clean:
	rm -rf "$(OUT)/runs" "$(OUT)/figures/demo" "$(OUT)/figures/test" "$(OUT)/.snakemake"

clean-all: clean
	rm -rf .venv "$(OUT)/.cache"
