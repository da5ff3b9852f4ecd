# make figures [PROFILE=demo] [PARAMS=dir] [DATA=dir] [OUT=.] [SEED=0] [JOBS=cores] [PYTHON=python3]
#              [CLUSTER=site.yaml]: on SLURM, see CLUSTER.md
# make tour [OUT=.]: notebook 00 alone
# make profile PROFILE=mine DATA=dir [PARAMS=dir] | doctor [DATA=dir]
# make predict SLIDES=file|dir MODEL=dir OUT=dir [MPP=um] [STRIDE_UM=um] [GENES=A,B|file] [JOBS=]
# make score PREDICTIONS=dir PROFILE=name [DATA=dir] [OUT=.]
# make test [SLOW=1] [JOBS=cores] | lab [PORT=] [ARGS=] | bench [OUT=dir] | book [PROFILE=demo] [OUT=.] | clean | clean-all
# Every target makes .venv by itself. Variables may also come from the environment; $ and quotes in
# them are letters.

PYTHON  ?= python3
PROFILE ?= demo
PARAMS  ?=
DATA    ?=
OUT     ?= .
SEED    ?= 0
JOBS    ?=
SLOW    ?=
SLIDES  ?=
MODEL   ?=
MPP     ?=
STRIDE_UM ?=
GENES   ?=
PREDICTIONS ?=
CLUSTER ?=
PORT    ?=
ARGS    ?=

# A value is a name, never a command: it is taken as it stands, without $(...) and $$, and reaches
# recipes through the environment alone. Nothing below writes one into a recipe's text.
override PYTHON  := $(value PYTHON)
override PROFILE := $(value PROFILE)
override PARAMS  := $(value PARAMS)
override DATA    := $(value DATA)
override OUT     := $(value OUT)
override SEED    := $(value SEED)
override JOBS    := $(value JOBS)
override SLOW    := $(value SLOW)
override SLIDES  := $(value SLIDES)
override MODEL   := $(value MODEL)
override MPP     := $(value MPP)
override STRIDE_UM := $(value STRIDE_UM)
override GENES   := $(value GENES)
override PREDICTIONS := $(value PREDICTIONS)
override CLUSTER := $(value CLUSTER)
override PORT    := $(value PORT)
override ARGS    := $(value ARGS)
export PYTHON PROFILE PARAMS DATA OUT SEED JOBS SLOW SLIDES MODEL MPP STRIDE_UM GENES PREDICTIONS \
  CLUSTER PORT ARGS

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.PHONY: figures tour profile doctor predict score test lab bench book clean clean-all
.DEFAULT_GOAL := figures

# The stamp holds the interpreter's version: another Python makes a new environment.
quoted := '$(subst ','\'',$(PYTHON))'
version := $(shell $(quoted) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
ifneq ($(shell cat .venv/.installed 2>/dev/null),$(version))
.PHONY: .venv/.installed
endif

# constraints.txt pins the tested CPU install; on a GPU machine, or another Python, ranges decide.
.venv/.installed: pyproject.toml constraints.txt
	@case "$(version)" in 3.11|3.12) ;; *) \
	  echo "PYTHON=$$PYTHON is version '$(version)': install Python 3.11 or 3.12 and name it by PYTHON=..." >&2; \
	  exit 1;; esac
	@rm -f .venv/.installed
	@if [ -d .venv ] && ! .venv/bin/python -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != "$(version)")' 2>/dev/null; \
	  then rm -rf .venv; fi
	@[ -d .venv ] || "$$PYTHON" -m venv .venv
	@if [ "$(version)" = 3.11 ] && ! command -v nvidia-smi >/dev/null; then pins="-c constraints.txt"; else pins=""; fi; \
	  echo "installing into .venv (about 2 minutes) $$pins"; \
	  .venv/bin/python -m pip install --quiet --disable-pip-version-check $$pins -e ".[dev]"
	@echo "$(version)" > .venv/.installed

# mvhlib/commands.py reads the variables, refuses what they cannot mean, and puts all caches below
# OUT/.cache: nothing is written to the home directory. `book`: of real data the pages hold tissue,
# so that book/ is never committed.
figures tour profile doctor predict score test lab bench book: .venv/.installed
	@PYTHONDONTWRITEBYTECODE=1 MVH_HOME="$$PWD" .venv/bin/python -m mvhlib.commands $@

# Works without .venv. An OUT that is not there has nothing to delete.
define in_out
case "$$OUT" in /*) out="$$OUT";; *) out="./$$OUT";; esac; \
[ -n "$${OUT//[[:space:]]/}" ] || { echo "OUT='$$OUT': is blank. Fix: name the folder to clean." >&2; exit 2; }; \
[ -d "$$out" ] || { echo "OUT=$$OUT: is not there, nothing to clean"; exit 0; }; \
out="$$(cd "$$out" && pwd -P && echo /)"; out="$${out%$$'\n'/}"; \
[ -n "$${out//\//}" ] || { echo "OUT=$$OUT: is the root of the file system. Fix: name the folder to clean." >&2; exit 2; }
endef

clean:
	@$(in_out); cd "$$out"; rm -rf runs figures/demo figures/test .snakemake

clean-all: clean
	@rm -rf .venv; $(in_out); cd "$$out"; rm -rf .cache
