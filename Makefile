# The commands of daily work; `make` alone lists them. All need the extra `dev` installed.
.PHONY: help test test-all lint pages docs

help:  ## list these commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

test:  ## the default tests, in parallel
	python -m pytest -n auto

test-all:  ## every test that this machine can run
	python -m pytest -n auto -m "not gpu"

lint:  ## format, lint, types, spelling
	ruff format .
	ruff check --fix .
	mypy
	codespell

pages:  ## make docs/cli.md and MODEL_CARD.md anew
	python scripts/cli_docs.py
	python scripts/model_card.py

docs:  ## serve the documentation at http://127.0.0.1:8000
	mkdocs serve
