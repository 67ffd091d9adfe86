# Every target is a line of scripts/bootstrap.py or of the environment it makes, so that the same works without make (see README).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help lab tour test unit lowest notebooks format hooks bench env clean
help:            ## this list
	@grep -hE '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14
lab: env         ## set everything up and open JupyterLab at the tour
	$(PYTHON) scripts/bootstrap.py data
	$(BIN)/jupyter lab index.ipynb
tour: env        ## the tour without a browser: runs index.ipynb, writes _out/tour.html, prints the scores
	$(PYTHON) scripts/bootstrap.py data
	$(BIN)/python scripts/tour.py
test: env        ## everything the tests need, then all tests
	$(PYTHON) scripts/bootstrap.py data browser
	$(BIN)/python -m pytest -n 2 --durations=40 tests
unit: env        ## the tests to run first: proofs, losses, shapes; under three minutes
	$(PYTHON) scripts/bootstrap.py data
	$(BIN)/python -m pytest -n 2 -q -m unit tests
lowest: env      ## are the floors in settings.ini true? the unit tests with the lowest versions of all requirements
	$(BIN)/python scripts/lowest.py
notebooks: env   ## after editing notebooks: format, export the package, clean, regenerate README.md, check
	$(BIN)/ruff format .
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/python scripts/readme.py
	$(BIN)/python -m pytest -q tests/test_linter.py
format: env      ## one statement a line, 110 columns: notebooks, tests, scripts
	$(BIN)/ruff format .
hooks: env       ## once a clone: git compares and merges notebooks cell by cell (nbdime)
	$(BIN)/nbdime config-git --enable
bench: env       ## speed against the peers, stored under results/ and printed as tables
	$(PYTHON) scripts/bootstrap.py data
	$(BIN)/python -m benchmarks
env:             ## the environment in .venv (quick when nothing changed)
	@$(PYTHON) scripts/bootstrap.py env
clean:           ## remove the environment and what targets wrote
	rm -rf .venv _out _docs build dist *.egg-info
