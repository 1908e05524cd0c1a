# Model Forge: documents in, a fine-tuned, verified GGUF out. `make` lists the targets.
# One rule a phase, in run order. make decides by time, cheaply; each script decides by content, surely:
# a touched file costs a second, never a training.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-builtin-rules
.SUFFIXES:
.DELETE_ON_ERROR:
.NOTPARALLEL:                    # one GPU, one phase at a time, even under -j
.DEFAULT_GOAL := help

CONFIG ?= config/training_config.yaml
RUNS   ?= 10
VENV   ?= .venv
PYTHON := $(VENV)/bin/python
ifdef PROMPT                     # text of a person: taken as it is, neither make nor a shell reads it
override PROMPT := $(value PROMPT)
export PROMPT
endif
ifdef OVERRIDE_REASON
override OVERRIDE_REASON := $(value OVERRIDE_REASON)
export OVERRIDE_REASON
endif

# ---- the config, read before anything else ------------------------------------------------------------
# An included makefile is remade even under `make -n`, so -n sees today's config and documents.
# MAKE_RESTARTS: once a run, or a file dated in the future makes make loop.
CONFIG_MK := build/$(subst /,-,$(basename $(CONFIG))).mk
BENCHES := bench-startup bench-all bench-learning bench-data bench-train bench-train-growth bench-plan bench-merge \
  bench-gguf bench-evaluation
NEED_NO_CONFIG := help setup env test test-slow test-faults lint bench $(BENCHES) plan clean clean-models init
ifneq ($(filter-out $(NEED_NO_CONFIG),$(or $(MAKECMDGOALS),help)),)
include $(CONFIG_MK)
endif
ifndef MAKE_RESTARTS
$(CONFIG_MK): FORCE | $(VENV)/light.ok
	@$(PYTHON) scripts/sync_config.py --config "$(CONFIG)" --makefile $@ --goals "$(MAKECMDGOALS)"
endif
$(BUILD)/%.json: | $(CONFIG_MK) ;

# ---- set-up: a light step that reads the config, a heavy one that the phases wait for --------------------
SETUP = VENV="$(VENV)" TORCH="$(TORCH)" LLAMA_CUDA="$(LLAMA_CUDA)" PYTHON3="$(PYTHON3)" scripts/setup_environment.sh
$(VENV)/light.ok:
	@$(SETUP) light
$(VENV)/ready.ok: requirements-finetuning.txt scripts/setup_environment.sh | $(VENV)/light.ok
	@$(SETUP) full
READY := $(VENV)/ready.ok

# ---- phases, in run order -------------------------------------------------------------------------------
RUN = $(PYTHON) scripts/

$(MODEL): $(BUILD)/model.json $(wildcard $(BUILD)/model.sources.json) | $(READY)
	@$(RUN)download_model.py --config "$(CONFIG)" $(FORCE_model)
$(DATASET): $(MODEL) $(BUILD)/dataset.json $(BUILD)/dataset.sources.json scripts/forge_dataset.py | $(READY)
	@$(RUN)forge_dataset.py --config "$(CONFIG)" $(FORCE_dataset)
$(VALIDATE): $(MODEL) $(DATASET) $(BUILD)/validate.json scripts/validate_dataset.py | $(READY)
	@$(RUN)validate_dataset.py --config "$(CONFIG)" $(FORCE_validate)
$(TRAIN): $(MODEL) $(DATASET) $(VALIDATE) $(BUILD)/train.json | $(READY)
	@$(RUN)fine_tune.py --config "$(CONFIG)" $(FORCE_train)
$(VERIFY_ADAPTER): $(MODEL) $(DATASET) $(TRAIN) $(BUILD)/verify-adapter.json | $(READY)
	@$(RUN)verify_adapter.py --config "$(CONFIG)" $(FORCE_verify-adapter)
$(EVALUATE): $(MODEL) $(DATASET) $(TRAIN) $(VERIFY_ADAPTER) $(BUILD)/evaluate.json $(BUILD)/evaluate.sources.json \
             | $(READY)
	@$(RUN)evaluate_model.py --config "$(CONFIG)" $(FORCE_evaluate)
$(MERGE): $(MODEL) $(DATASET) $(TRAIN) $(VERIFY_ADAPTER) $(EVALUATE) $(BUILD)/merge.json | $(READY)
	@$(RUN)merge_adapter.py --config "$(CONFIG)" $(FORCE_merge)
$(VERIFY_MERGED): $(MODEL) $(DATASET) $(TRAIN) $(MERGE) $(BUILD)/verify-merged.json | $(READY)
	@$(RUN)verify_merged.py --config "$(CONFIG)" $(FORCE_verify-merged)
$(GGUF): $(MODEL) $(DATASET) $(TRAIN) $(EVALUATE) $(MERGE) $(VERIFY_MERGED) $(BUILD)/gguf.json | $(READY)
	@$(RUN)convert_to_gguf.py --config "$(CONFIG)" $(FORCE_gguf)
$(VERIFY_GGUF): $(MODEL) $(DATASET) $(TRAIN) $(EVALUATE) $(MERGE) $(GGUF) $(BUILD)/verify-gguf.json | $(READY)
	@$(RUN)verify_gguf.py --config "$(CONFIG)" $(FORCE_verify-gguf)
$(MODELFILE): $(MODEL) $(DATASET) $(VALIDATE) $(TRAIN) $(VERIFY_ADAPTER) $(EVALUATE) $(VERIFY_MERGED) $(GGUF) \
              $(VERIFY_GGUF) $(BUILD)/modelfile.json $(BUILD)/modelfile.sources.json | $(READY)
	@$(RUN)create_modelfile.py --config "$(CONFIG)" $(FORCE_modelfile)
.SECONDARY: $(MERGE)             # 15 GB that a user may delete without a rerun

.PHONY: all setup env model dataset validate train verify-adapter evaluate merge verify-merged gguf verify-gguf
.PHONY: modelfile status ask chat report runs redo init serve ciris-env have-ollama deploy undeploy upload-plan upload
.PHONY: audit verify-audit feedback regression test test-slow test-faults lint bench $(BENCHES) plan clean clean-models
.PHONY: help FORCE

#: Everyday
all: modelfile                   ## everything, up to a loadable, verified model
	@$(PYTHON) scripts/summary.py --config "$(CONFIG)"
setup: | $(VENV)/light.ok        ## install what the phases need (make all does it too)
	@$(SETUP) full
env: | $(VENV)/light.ok          ## check this machine: GPU, libraries, disk, memory
	@VENV="$(VENV)" bash scripts/verify_environment.sh --config "$(CONFIG)"
plan: | $(READY)                 ## what the config needs of this machine: memory, disk, time
	@$(PYTHON) scripts/plan.py --config "$(CONFIG)"
status:                          ## what is done, stale (and why), failed or missing
	@$(PYTHON) scripts/status.py --config "$(CONFIG)"
ask: $(MODELFILE)                ## ask the model: make ask PROMPT="Who are you?"
	@$(PYTHON) scripts/ask.py --config "$(CONFIG)"
chat: $(MODELFILE)               ## talk to the model in the terminal
	@$(PYTHON) scripts/chat_model.py --config "$(CONFIG)" $(if $(BASE),--base)
report: | $(READY)               ## one page that shows it all: report/<name>/index.html
	@$(PYTHON) scripts/write_report.py --config "$(CONFIG)"
runs:                            ## every adapter that is kept: settings that differ, losses
	@$(PYTHON) scripts/runs.py --config "$(CONFIG)"
# The stamp counts as new (-W), so make runs the phase and, before it, only what is missing.
redo:                            ## do one phase again: make redo PHASE=gguf
	@[ -f "$(BUILD)/$(PHASE).json" ] || { echo "FAIL no phase '$(PHASE)'"; \
	  echo "  do name one that make help lists: make redo PHASE=gguf"; exit 2; } >&2
	@$(MAKE) --no-print-directory -W "$(BUILD)/$(PHASE).json" "$(PHASE)" "FORCE_$(PHASE)=--force"
init: | $(VENV)/light.ok         ## a config of your own: make init PRESET=qwen2-7b-8gb
	@$(PYTHON) scripts/init_config.py --preset "$(PRESET)"

#: Phases, in run order
model: $(MODEL)                  ## get the base model
dataset: $(DATASET)              ## documents to training rows
validate: $(VALIDATE)            ## gate: check the rows
train: $(TRAIN)                  ## fine-tune an adapter (QLoRA)
verify-adapter: $(VERIFY_ADAPTER)  ## gate: check the adapter
evaluate: $(EVALUATE)            ## gate: safety, coherence, knowledge, beside the base
merge: $(MERGE)                  ## merge the adapter into the base
verify-merged: $(VERIFY_MERGED)  ## gate: merged equals base plus adapter
gguf: $(GGUF)                    ## convert to GGUF and quantize
verify-gguf: $(VERIFY_GGUF)      ## gate: the GGUF against the merged model
modelfile: $(MODELFILE)          ## write the Modelfile and gguf_model_manifest.json
	@$(call publish,$(OLLAMA_FILE),Modelfile)
	@$(call publish,$(MODELFILE),gguf_model_manifest.json)
# The copies at the top are this CONFIG's, rewritten only when they differ.
publish = cmp -s $(1) $(2) || { cp $(1) $(2).partial && mv $(2).partial $(2) && echo "wrote $(2)"; }

#: After all, on purpose
serve: $(MODELFILE)              ## an OpenAI-compatible server of the model on this machine
	@$(PYTHON) scripts/serve_model.py --config "$(CONFIG)"
ciris-env:                       ## the variables for CIRISAgent; asks the running server for JSON
	@$(PYTHON) scripts/ciris_env.py --config "$(CONFIG)"
have-ollama: | $(READY)           # before hours of training
	@$(PYTHON) scripts/deploy_ollama.py --config "$(CONFIG)" --check
deploy: have-ollama modelfile    ## put the model into Ollama, and check it there
	@$(PYTHON) scripts/deploy_ollama.py --config "$(CONFIG)"
undeploy:                        ## take it out of Ollama again
	@$(PYTHON) scripts/deploy_ollama.py --config "$(CONFIG)" --remove
audit:                           ## which base, data, code and evaluation made this GGUF
	@$(PYTHON) scripts/audit_trail.py --config "$(CONFIG)"
verify-audit:                    ## check the audit trail, and every file that it names
	@$(PYTHON) scripts/audit_trail.py --config "$(CONFIG)" --verify
feedback:                        ## write what failed where scenario-forge looks for it
	@$(PYTHON) scripts/export_feedback.py --config "$(CONFIG)"
regression:                      ## compare the evaluation with the last release in baselines/
	@$(PYTHON) scripts/regression.py --config "$(CONFIG)"
# Neither makes anything first: what is sent is what was looked at.
upload-plan: | $(READY)          ## show what make upload would send, and where; nothing is sent
	@$(PYTHON) scripts/upload_model.py --config "$(CONFIG)" --plan
upload: | $(READY)               ## send the model to the Hub: private, checked, only what passed
	@$(PYTHON) scripts/upload_model.py --config "$(CONFIG)"

#: For contributors
PYTEST = OMP_NUM_THREADS=$$(( $$(nproc) > 3 ? $$(nproc) / 2 : 1 )) $(PYTHON) -m pytest --numprocesses 2 --dist worksteal
test: | $(VENV)/dev.ok           ## the tests, those that train or convert a whole model left out
	@$(PYTEST) -m "not slow"
test-slow: | $(VENV)/dev.ok      ## the tests that train or convert a whole model
	@$(PYTEST) -m slow
test-faults: | $(VENV)/dev.ok    ## kill it, starve it, damage its files, and count: make test-faults RUNS=50
	@mkdir -p build && rm -f build/faults.jsonl
	@code=0; RUNS="$(RUNS)" FAULTS_LOG="$(CURDIR)/build/faults.jsonl" $(PYTEST) tests/faults || code=$$?; \
	  $(PYTHON) tests/faults/table.py build/faults.jsonl; exit $$code
lint: | $(VENV)/dev.ok           ## ruff and shellcheck
	@$(PYTHON) -m ruff check . && $(PYTHON) -m ruff format --check . && \
	  $(VENV)/bin/shellcheck scripts/*.sh .ci/run
bench: $(BENCHES)                ## every benchmark
bench-startup: | $(READY)        ## measure how soon make answers, beside a usual script
	@$(PYTHON) bench/startup.py
bench-all: | $(READY)            ## measure every phase, beside a plain script (two times make all)
	@$(PYTHON) bench/all.py --config "$(CONFIG)"
bench-learning: | $(READY)       ## measure what five seeds learn, beside the base (five times make all)
	@$(PYTHON) bench/learning.py --config "$(CONFIG)"
bench-data: | $(READY)           ## measure 1 GB of documents to rows, beside a plain script
	@$(PYTHON) bench/data.py
bench-train: | $(VENV)/dev.ok    ## measure training, beside trl and tunekit
	@$(PYTHON) bench/train.py --config "$(CONFIG)"
bench-train-growth: | $(VENV)/dev.ok  ## measure how training grows, and draw it into docs
	@$(PYTHON) bench/train_growth.py --config "$(CONFIG)"
bench-plan: | $(READY)           ## measure how well make plan predicts the memory of training
	@$(PYTHON) bench/plan.py
bench-merge: | $(READY)          ## measure the merge of 0.5B to 7B, beside peft's (46 GB of disk)
	@$(PYTHON) bench/merge.py
bench-gguf: | $(READY)           ## measure the way from adapter to Q4_K_M, beside the usual chain (56 GB of disk)
	@$(PYTHON) bench/quantize.py
bench-evaluation: | $(READY)     ## simulate how far the verdict of make evaluate can be trusted
	@$(PYTHON) bench/evaluation.py
clean:                           ## remove logs, caches and half-built folders; nothing is retrained
	@rm -rf build logs/*.log report .pytest_cache .ruff_cache models/.*.partial models/*/.*.partial dataset_package/.*.partial
clean-models:                    ## remove every dataset, model and verdict that was made
	@rm -rf dataset_package models evaluation build logs/*.log report Modelfile
$(VENV)/dev.ok: requirements-dev.txt | $(READY)
	@$(SETUP) dev
help:                            ## this list
	@awk -F ':.*## ' '/^#: /{printf "\n%s\n", substr($$0, 4)} /^[a-z-]+:.*## /{printf "  %-15s %s\n", $$1, $$2}' Makefile
	@echo; echo "CONFIG=$(CONFIG)   VENV=$(VENV)   TORCH=cpu|cu126|cu130 and LLAMA_CUDA=1 for make setup"
FORCE:
