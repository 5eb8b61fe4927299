# make book    the website, in .venv, without torch          make serve    read it at http://127.0.0.1:8000
# make test    completes .venv, runs every test and chapter  make lab      the chapters in JupyterLab
# make help    the rest
PYTHON ?= python3
PORT   ?= 8000
# for train, evaluate, bench, gpu: where MNIST lies, and on which device to work (both empty: what the command line chooses itself)
DATA   ?=
DEVICE ?=
MINUTES ?=
FLAGS   = $(if $(DATA),--data $(DATA)) $(if $(DEVICE),--device $(DEVICE))
PY     := .venv/bin/python
PIP    := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt
BOOK   := $(PY) -m tools.book
export PYTHONPATH := $(CURDIR)

.PHONY: help book serve test lab execute chapter pages train evaluate bench gpu hero mutate alone processors lint clean
.DEFAULT_GOAL := help

help:  ## what can be made
	@echo "Learning Diffusion Models, Step by Step"; echo
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' Makefile

# --- one virtual environment, completed in steps; a stamp file says which steps are done ---
.venv/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or later is needed, this is {sys.version.split()[0]}. Try: make book PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	@touch $@
.venv/with-book: requirements-book.txt constraints.txt | .venv/made
	$(PIP) -r requirements-book.txt
	@touch $@
.venv/with-test: requirements.txt requirements-test.txt requirements-compare.txt requirements-text-to-image.txt constraints.txt pyproject.toml | .venv/with-book
	$(PIP) -r requirements.txt -r requirements-test.txt -r requirements-compare.txt -r requirements-text-to-image.txt
	$(PIP) --no-deps --editable .
	@touch $@
.venv/with-lab: requirements-lab.txt .venv/with-test
	$(PIP) -r requirements-lab.txt
	@touch $@

book: .venv/with-book  ## build the website and print where to open it
	@$(BOOK)

serve: book  ## serve the website at http://127.0.0.1:8000 (PORT=8000)
	@echo "Serving at http://127.0.0.1:$(PORT)/ (Ctrl-C stops it)"
	@$(PY) -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html

test: .venv/with-test  ## every test, then every chapter run and compared with its stored outputs
	$(PY) -m tools.verify

lab: .venv/with-lab  ## open the chapters in JupyterLab
	$(PY) -m jupyterlab book

execute: .venv/with-test  ## re-run the chapters and store their outputs (CHAPTERS="a.ipynb b.ipynb" or --stale, default all)
	$(PY) -m tools.execute $(CHAPTERS)

chapter:  ## write a new chapter's skeleton: make chapter FILE=book/3-variants/ddim.ipynb TITLE="DDIM"
	@test ! -e "$(FILE)" || { echo "$(FILE) is there already"; exit 1; }
	@mkdir -p "$(dir $(FILE))"
	sed 's|{file}|$(FILE)|; s|{title}|$(TITLE)|' tools/template.ipynb > "$(FILE)"

pages: .venv/with-book  ## rewrite the generated reference pages: ledger, bugs, benchmarks, status, symptoms
	$(PY) -m tools.pages

train: .venv/with-test  ## train the shipped networks at full length (DATA=folder, DEVICE=cpu|cuda)
	$(PY) -m diffusion_core train mnist_classifier $(if $(DATA),--data $(DATA))
	$(PY) -m diffusion_core train mnist $(if $(wildcard runs/mnist/checkpoint.safetensors),--resume) $(FLAGS)

evaluate: .venv/with-test  ## measure the shipped network against MNIST (DATA=folder)
	$(PY) -m diffusion_core evaluate mnist $(FLAGS)

bench: .venv/with-test  ## time what is not stored yet beside lucidrains' and diffusers' (BENCH="--again overhead recipes": anew)
	$(PY) -m benchmarks $(BENCH) $(FLAGS)
	$(PY) -m tools.pages

gpu: .venv/with-test  ## what wants a GPU, into results/, in MINUTES=30; resumable (DATA=folder, DEVICE=)
	$(PY) -m tools.gpu $(if $(MINUTES),--minutes $(MINUTES)) $(FLAGS)

hero: .venv/with-test  ## draw the landing page's animation with the shipped network
	$(PY) -m tools.hero

mutate: .venv/with-test  ## inject bugs mechanically and count those the tests catch
	$(PY) -m tools.mutate

alone: .venv/with-test  ## run every chapter in an empty folder, with the last commit's package (ALONE=--newest: and the newest of all others)
	$(PY) -m tools.alone $(ALONE)

processors: .venv/with-test  ## run the chapters as on older processors, with one thread and with four (CHAPTERS="a.ipynb", default all)
	$(PY) -m tools.processors $(CHAPTERS)

lint: .venv/with-test  ## ruff over package, tools, tests and chapters, mypy over the package
	$(PY) -m ruff check .
	$(PY) -m ruff format --check diffusion_core tools tests benchmarks
	$(PY) -m mypy

clean:  ## remove the built site (not .venv)
	rm -rf _build
