# Every target sets up what it needs in .venv; nothing has to be installed first but Python and git.
# A stamp says what .venv holds, so that it is installed anew only when pyproject.toml or constraints.txt changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CREATED := $(VENV)/.created
RUNTIME := $(VENV)/.installed-runtime
DEVELOPMENT := $(VENV)/.installed-development
INSPECTION := $(VENV)/.installed-inspection
DASK := $(VENV)/.installed-dask
# Trainers and vector stores stand apart: they take gigabytes, and LLaMA-Factory wants other versions than the rest.
CONSUMERS_VENV := .venv-consumers
LLAMA_FACTORY_VENV := .venv-llama-factory
CONSUMERS := $(CONSUMERS_VENV)/.installed
LLAMA_FACTORY := $(LLAMA_FACTORY_VENV)/.installed
# -qq still shows errors.
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

# No variable of a developer's shell decides what a test sees.
BARE := env -i HOME="$$HOME" PATH="$$PATH" LANG=C.UTF-8 $(if $(CI),CI=$(CI)) $(if $(HISTORIES_SEED),HISTORIES_SEED=$(HISTORIES_SEED)) $(if $(TMPDIR),TMPDIR='$(TMPDIR)')

# Tests run in as many processes as there are cores, eight at most; one that is done early takes over from another.
SPREAD := -n auto --maxprocesses 8 --dist worksteal

# Where 'make install' puts things. DESTDIR is put before every path that is written to, and stands in none of the files.
DESTDIR ?=
PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
UNITDIR ?= $(PREFIX)/lib/systemd/system
SYSUSERSDIR ?= $(PREFIX)/lib/sysusers.d
TMPFILESDIR ?= $(PREFIX)/lib/tmpfiles.d
DOCDIR ?= $(PREFIX)/share/doc/distilld
# The lakehouse that the service keeps, and the user that it runs as.
LAKE ?= /srv/lakehouse
SERVICE_USER ?= distilld
STATE ?= /var/lib/distilld/distilld.db

INSTALLED := $(DESTDIR)$(PREFIX)/lib/distilld
CONFIG := $(SYSCONFDIR)/distilld/distilld.toml
# What sed puts in the place of something: its own signs stand for themselves.
as_text = $(subst |,\|,$(subst &,\&,$(subst \,\\,$1)))
RENDER = sed -e 's|/usr/local/share/doc/distilld|$(call as_text,$(DOCDIR))|g' \
	-e 's|/usr/local/bin|$(call as_text,$(PREFIX))/bin|g' \
	-e 's|/etc/distilld|$(call as_text,$(SYSCONFDIR))/distilld|g' -e 's|/srv/lakehouse|$(call as_text,$(LAKE))|g' \
	-e 's|^User=distilld$$|User=$(SERVICE_USER)|' -e 's|^Group=distilld$$|Group=$(SERVICE_USER)|' \
	-e 's| distilld distilld -$$| $(SERVICE_USER) $(SERVICE_USER) -|' \
	-e 's| distilld distilld-read -$$| $(SERVICE_USER) distilld-read -|'
# The unit as a template: distilld@NAME keeps the lake /srv/NAME with /etc/distilld/NAME.toml and /var/lib/distilld/NAME.
AS_INSTANCE := -e 's|/etc/distilld/distilld.toml|/etc/distilld/%i.toml|g' -e 's|/srv/lakehouse|/srv/%i|g' \
	-e 's|^StateDirectory=distilld|StateDirectory=distilld/%i|' -e 's|^Description=.*|& (%i)|'
# The service's user reads what root installs, whatever root's umask.
FOR_ALL := umask 022 &&

# What 'make inspect' opens, and where it can be seen.
STORE ?= state/distilld.db
PORT ?= 8001

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo dask test test-slow test-consumers coverage lint bench inspect clean install install-program install-units uninstall

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(RUNTIME) ## Show distilld at work on a small lakehouse of its own
	@$(BIN)/distilld demo

dask: $(DEVELOPMENT) $(DASK) ## Install Dask, without which 'make test' skips the tests of clusters

test: $(DEVELOPMENT) ## Run the tests but the slow ones
	@$(BARE) $(BIN)/python -m pytest $(SPREAD) -m 'not slow'

test-slow: $(DEVELOPMENT) ## Run the slow tests
	@$(BARE) $(BIN)/python -m pytest $(SPREAD) -m slow

test-consumers: $(CONSUMERS) $(LLAMA_FACTORY) ## Try trainers and vector stores on snapshots and changes (installs gigabytes)
	@$(BARE) $(CONSUMERS_VENV)/bin/python -m pytest -o addopts= -o filterwarnings=default -o timeout=600 -ra tests/consumers

coverage: $(DEVELOPMENT) ## Run the tests and show which branches of the pure core they miss
	@$(BARE) $(BIN)/python -m pytest -m 'not slow' --cov --cov-report=term-missing

lint: $(DEVELOPMENT) ## Check style, format, types and layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(DEVELOPMENT) ## Measure; see docs for what the figures mean
	@$(BIN)/python -m tests.bench

inspect: $(INSPECTION) ## Browse a state store, read-only: make inspect STORE=state/distilld.db PORT=8001
	@$(BIN)/distilld inspect --state '$(STORE)' --port '$(PORT)'

install: install-program install-units ## Install the program and the service (PREFIX, DESTDIR, LAKE, SERVICE_USER)
	@$(FOR_ALL) test -e '$(DESTDIR)$(CONFIG)' || { install -d '$(DESTDIR)$(SYSCONFDIR)/distilld' && \
		'$(INSTALLED)/bin/python' -I -m distilld --config '$(DESTDIR)$(CONFIG)' --root '$(LAKE)' --state '$(STATE)' \
			init >/dev/null && echo 'wrote $(CONFIG)'; }
	@echo 'Installed. Next, as docs/operations.md tells:'
	@echo '  systemd-sysusers && systemd-tmpfiles --create && systemctl daemon-reload'
	@echo '  systemctl enable --now distilld'

install-program: # The program in a virtual environment of its own, and the command that starts it
	@$(FOR_ALL) $(PYTHON) -m venv --clear '$(INSTALLED)'
	@echo 'Installing distilld into $(INSTALLED) ...'
	@$(FOR_ALL) '$(INSTALLED)/bin/python' -m pip install -qq --disable-pip-version-check --no-compile --require-hashes -r requirements.txt
	@# The build backend is among them, and nothing else is fetched.
	@$(FOR_ALL) '$(INSTALLED)/bin/python' -m pip install -qq --disable-pip-version-check --no-compile \
		--no-index --no-deps --no-build-isolation .
	@# What only builds does not stay, nor the setuptools that Python 3.11 puts into each environment.
	@$(FOR_ALL) '$(INSTALLED)/bin/python' -m pip uninstall -qq -y flit_core setuptools
	@# The service cannot write compiled files; and neither they nor the scripts may name DESTDIR.
	@$(FOR_ALL) '$(INSTALLED)/bin/python' -m compileall -q -f -s '$(DESTDIR)' '$(INSTALLED)/lib'
	@grep -rlIF '$(INSTALLED)' '$(INSTALLED)/bin' '$(INSTALLED)/pyvenv.cfg' | xargs -r sed -i 's|$(INSTALLED)|$(PREFIX)/lib/distilld|g'
	@$(FOR_ALL) install -d '$(DESTDIR)$(PREFIX)/bin'
	@# Isolated: no code from the working directory or from the caller's environment.
	@$(FOR_ALL) printf '#!/bin/sh\nexec %s/lib/distilld/bin/python -I -m distilld "$$@"\n' '$(PREFIX)' >'$(DESTDIR)$(PREFIX)/bin/distilld'
	@chmod 0755 '$(DESTDIR)$(PREFIX)/bin/distilld'
	@# As in the source tree, so that links between pages work.
	@$(FOR_ALL) for folder in . config docs docs/decisions monitoring; do install -d '$(DESTDIR)$(DOCDIR)'/$$folder; done
	@install -m 0644 *.md '$(DESTDIR)$(DOCDIR)'
	@for folder in config docs docs/decisions monitoring; do \
		find $$folder -maxdepth 1 -type f -exec install -m 0644 -t '$(DESTDIR)$(DOCDIR)'/$$folder {} +; done

install-units: # The service's unit, its user and its folders
	@$(FOR_ALL) install -d '$(DESTDIR)$(UNITDIR)' '$(DESTDIR)$(SYSUSERSDIR)' '$(DESTDIR)$(TMPFILESDIR)'
	@$(FOR_ALL) $(RENDER) systemd/distilld.service >'$(DESTDIR)$(UNITDIR)/distilld.service'
	@$(FOR_ALL) $(RENDER) systemd/distilld.timer >'$(DESTDIR)$(UNITDIR)/distilld.timer'
	@# One run for the timer, and an instance for each of several lakes: the same unit, with other words in a few places.
	@$(FOR_ALL) $(RENDER) systemd/distilld.service | sed '/^\[Install\]/,$$d' >'$(DESTDIR)$(UNITDIR)/distilld-once.service'
	@$(FOR_ALL) install -d '$(DESTDIR)$(UNITDIR)/distilld-once.service.d'
	@$(FOR_ALL) $(RENDER) systemd/distilld-once.conf >'$(DESTDIR)$(UNITDIR)/distilld-once.service.d/once.conf'
	@$(FOR_ALL) sed $(AS_INSTANCE) systemd/distilld.service | $(RENDER) >'$(DESTDIR)$(UNITDIR)/distilld@.service'
	@$(FOR_ALL) $(RENDER) systemd/distilld.tmpfiles >'$(DESTDIR)$(TMPFILESDIR)/distilld.conf'
	@# Another user is there already; the group of those who train may not be.
	@$(FOR_ALL) if test '$(SERVICE_USER)' = distilld; then cat systemd/distilld.sysusers; \
		else grep -v '^u ' systemd/distilld.sysusers; fi >'$(DESTDIR)$(SYSUSERSDIR)/distilld.conf'
	@chmod 0644 '$(DESTDIR)$(UNITDIR)'/distilld*.service '$(DESTDIR)$(UNITDIR)'/distilld*.d/* '$(DESTDIR)$(UNITDIR)/distilld.timer' '$(DESTDIR)$(TMPFILESDIR)/distilld.conf'

uninstall: ## Remove what 'make install' put there; the config, the state and the lake stay
	rm -rf '$(INSTALLED)' '$(DESTDIR)$(DOCDIR)'
	rm -f '$(DESTDIR)$(PREFIX)/bin/distilld' '$(DESTDIR)$(UNITDIR)/distilld.service' \
		'$(DESTDIR)$(UNITDIR)/distilld.timer' '$(DESTDIR)$(UNITDIR)/distilld@.service' \
		'$(DESTDIR)$(UNITDIR)/distilld-once.service' '$(DESTDIR)$(UNITDIR)/distilld-once.service.d/once.conf' \
		'$(DESTDIR)$(SYSUSERSDIR)/distilld.conf' '$(DESTDIR)$(TMPFILESDIR)/distilld.conf'

clean: ## Remove what the other targets made
	rm -rf $(VENV) $(CONSUMERS_VENV) $(LLAMA_FACTORY_VENV) build dist *.egg-info .coverage .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find distilld tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(CREATED):
	@command -v $(PYTHON) >/dev/null || { \
		echo "distilld needs Python 3.11 or newer; there is no '$(PYTHON)' here: try 'make PYTHON=python3.11'" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "distilld needs Python 3.11 or newer; '$(PYTHON)' is older: try 'make PYTHON=python3.11'" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(RUNTIME): pyproject.toml constraints.txt $(CREATED)
	@echo "Installing distilld into $(VENV) ..."
	@$(PIP_INSTALL) -e .
	@touch $@

$(INSPECTION): pyproject.toml constraints.txt $(CREATED)
	@echo "Installing distilld and Datasette into $(VENV) ..."
	@$(PIP_INSTALL) -e '.[inspect]'
	@touch $(RUNTIME) $@

$(DEVELOPMENT): pyproject.toml constraints.txt $(CREATED)
	@echo "Installing distilld and its development tools into $(VENV) ..."
	@# Datasette too: its pages are tested.
	@$(PIP_INSTALL) -e '.[test,dev,inspect]'
	@touch $(RUNTIME) $(INSPECTION) $@

$(DASK): pyproject.toml constraints.txt $(CREATED)
	@echo "Installing Dask into $(VENV) ..."
	@$(PIP_INSTALL) -e '.[dask]'
	@touch $@

# torch alone first, at its pinned version: what is asked for together may bring another build of it.
$(CONSUMERS): pyproject.toml constraints-consumers.txt
	@echo "Installing trainers and vector stores into $(CONSUMERS_VENV) ..."
	@$(PYTHON) -m venv --clear $(CONSUMERS_VENV)
	@$(CONSUMERS_VENV)/bin/python -m pip install -qq --disable-pip-version-check -c constraints-consumers.txt torch
	@$(CONSUMERS_VENV)/bin/python -m pip install -qq --disable-pip-version-check -c constraints-consumers.txt -e '.[test,consumers]'
	@# Alone: what Axolotl requires are other versions of all the rest, and its row readers do without.
	@$(CONSUMERS_VENV)/bin/python -m pip install -qq --disable-pip-version-check --no-deps -c constraints-consumers.txt axolotl
	@touch $@

# Its own torchvision and torchaudio are made for other builds of torch, and without them it reads text all the same.
$(LLAMA_FACTORY): constraints-llama-factory.txt
	@echo "Installing LLaMA-Factory into $(LLAMA_FACTORY_VENV) ..."
	@$(PYTHON) -m venv --clear $(LLAMA_FACTORY_VENV)
	@$(LLAMA_FACTORY_VENV)/bin/python -m pip install -qq --disable-pip-version-check -c constraints-llama-factory.txt torch
	@$(LLAMA_FACTORY_VENV)/bin/python -m pip install -qq --disable-pip-version-check -c constraints-llama-factory.txt llamafactory
	@$(LLAMA_FACTORY_VENV)/bin/python -m pip uninstall -qq -y torchvision torchaudio
	@touch $@
