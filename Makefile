# make reports   set everything up, run the reports below, write their pages, the index and the README's table
# make benchmark measure against the published procedure on OPT-125M's shape: some minutes, best on a quiet machine
# make scale     measure floors, galleries, two processes and memory, and project costs: some 40 minutes on a quiet machine with 20 GiB
# make modern    race SmolLM2's step over names, and measure the memory of presets by modern language models: some 20 minutes on a quiet machine
# make galleries  search 1 and 2.6 million images exactly and by FAISS: over half an hour; writes reports/benchmark-galleries
# make demo      talk to the model in a browser, at http://127.0.0.1:8866; otherwise: make demo PORT=9000 PRESET=emoji
# make rate      let people rate stories at http://127.0.0.1:8867: make rate STUDY=data/runs/told/study PORT=8867
# make owner     watch a study and lead raters back, at http://127.0.0.1:8868: make owner STUDY=data/runs/told/study ADDRESS=http://127.0.0.1:8867/
# make picture   take the picture of the page in the README anew (needs Chromium)
# make smollm2   fetch a real language model, SmolLM2-135M, into data/models
# make pictures  fetch OpenMoji's drawings and render them into shards below data/pictures
# make more-pictures  fetch and render the same by other hands: emoji, icons, clip art and stamps (needs npm and apt-get)
# make emoji-gallery  the pictures that the preset emoji answers with, from OpenMoji's
# make emoji-pairs  give drawings of emoji captions to train on, for the preset emoji (needs npm and apt-get)
# make real      fetch SmolLM2, drawings and definitions, and ask the shipped checkpoint for what nobody named; writes reports/eval_knowledge-checkpoint
# make smol-runs  every other run with SmolLM2: stories, dialogues, tellings, examples, tuned against frozen; writes reports/*-smol and reports/show_examples-emoji
# make checkpoints  train the presets emoji and smol, and put them where they are shipped; writes reports/train-emoji and reports/train-smol
# make tower     train the tower for drawings on what make pictures and more-pictures left, into data/emoji/tower; writes reports/pretrain_tower-drawings
# make unseen    ask words and photographs that nobody trained on, by that tower and SmolLM2; writes reports/eval_unseen-drawings
# make wordnet   fetch WordNet's definitions of nouns into data/texts (needs apt-get)
# make knowledge  ask SmolLM2, grounded in OpenMoji's names, by queries and definitions; writes reports/eval_knowledge-emoji
# make compose   train the remedies for orders about style (over an hour on two busy cores); writes reports/compose-mini
# make conformance  try every kind of causal language model, tiny, and write reports/conformance.md
# make attack    damage files, kill runs and keep the page busy for an hour: some two hours; writes reports/attack
# make verify    make a record's run again and compare every figure: make verify RECORD=reports/train-mini.json
# make rooms     draw the rooms of the package and their arrows, from the imports
# make docs      build the documentation site, _docs/site/index.html, and follow every link
# make outputs   run the library's notebooks and store their small outputs in them
# make test      set everything up, run every test
# make -B reports runs again what is already there. PYTHON=python3.12 chooses the Python that .venv is made with.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3

# An active environment is used (virtualenv, or conda other than `base`); without one, .venv is made and used.
ifneq ($(VIRTUAL_ENV),)
  ENVIRONMENT := $(VIRTUAL_ENV)
else ifneq ($(filter-out base,$(CONDA_DEFAULT_ENV)),)
  ENVIRONMENT := $(CONDA_PREFIX)
else
  ENVIRONMENT := $(CURDIR)/.venv
endif
export PATH := $(ENVIRONMENT)/bin:$(PATH)
# Notebooks name the kernel python3: it must be the one of this environment, not one that the user installed elsewhere.
export JUPYTER_PREFER_ENV_PATH := 1

LIBRARY := $(wildcard fromage/*.py fromage/*/*.py data/mini/manifest.json) settings.ini

# One line a report: its name <run>-<preset>, and papermill's parameters for nbs/<run>.ipynb. The run leaves its record (and
# pictures) under `report`. A report is made again when its notebook or the library is newer. The study's secret is fixed, so that
# the rehearsal's figures come out alike: nobody rates this study.
define report
REPORTS += $(1)
reports/$(1).html: nbs/$(firstword $(subst -, ,$(1))).ipynb $(LIBRARY) | environment
	@mkdir -p reports
	papermill $$< reports/$(1).ipynb $(2) -p report reports/$(1) </dev/null
	python -m fromage.core.pages reports/$(1).ipynb
endef
$(eval $(call report,train-mini,-p preset mini))
$(eval $(call report,pretrain_mini-mini,-p shipped_probes 200 -p held_out 1000))
$(eval $(call report,eval_vist-mini,-p preset mini))
$(eval $(call report,eval_vist-corrected,-p preset mini -p protocol corrected))
$(eval $(call report,eval_visdial-mini,-p preset mini -p answered 64 -p searched 320))
$(eval $(call report,tell_stories-mini,-p preset mini -p limit 60 -p specification data/studies/paper.toml -p secret rehearsal \
  -p output data/runs/tell_stories-mini))
$(eval $(call report,analyse_ratings-rehearsal,-p study data/runs/tell_stories-mini/study -p output data/runs/analyse_ratings-rehearsal))
reports/analyse_ratings-rehearsal.html: reports/tell_stories-mini.html
$(eval $(call report,show_examples-mini,))
$(eval $(call report,ablate-mini,-p variants "all layers tuned; no [RET]" -p seeds 2 -p steps 80 -p learning_rate 0.006 \
  -p train_examples 12000 -p validation_examples 300 -p pairs 300 -p stories 100 -p dialogues 60 -p answered 2 -p episodes 30 -p texts 200 -p workers 2))
$(eval $(call report,claims,))
reports/claims.html: $(filter-out reports/claims.html,$(REPORTS:%=reports/%.html))

.PHONY: help
help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile
	@echo "reports: $(REPORTS)"

.PHONY: reports
reports: $(REPORTS:%=reports/%.html)
	@python -m fromage.core.pages

.PHONY: benchmark
benchmark: environment
	@mkdir -p reports
	papermill nbs/benchmark.ipynb reports/benchmark-mini.ipynb -p shape opt-125m -p rounds 6 -p rounds_of_dialogue 10 -p candidates 100 \
	  -p stories 150 -p report reports/benchmark-mini </dev/null
	python -m fromage.core.pages reports/benchmark-mini.ipynb

.PHONY: scale
scale: environment
	@mkdir -p reports
	papermill nbs/benchmark.ipynb reports/benchmark-scale.ipynb -p shape opt-125m -p rounds 6 -p rounds_of_dialogue 10 -p candidates 100 \
	  -p stories 10 -p tower ViT-B-32 -p report reports/benchmark-scale \
	  -y "{gallery_rows: [10000, 100000, 1000000, 2600000], footprints: [facebook/opt-1.3b, facebook/opt-6.7b]}" </dev/null
	papermill nbs/costs.ipynb reports/costs.ipynb -p benchmark reports/benchmark-scale.json -p report reports/costs </dev/null
	python -m fromage.core.pages reports/benchmark-scale.ipynb
	python -m fromage.core.pages reports/costs.ipynb

.PHONY: modern
modern: environment
	@mkdir -p reports
	papermill nbs/benchmark.ipynb reports/benchmark-modern.ipynb -p shape opt-125m -p rounds 4 -p rounds_of_dialogue 2 -p candidates 20 \
	  -p stories 10 -p tower ViT-B-32 -p report reports/benchmark-modern -y "{gallery_rows: [10000, 100000], searches: [ivf, ivfpq, hnsw], \
	  names_of: [HuggingFaceTB/SmolLM2-135M-Instruct], footprints: [smollm2-135m, smollm2-360m, qwen3-1.7b]}" </dev/null
	python -m fromage.core.pages reports/benchmark-modern.ipynb

# Half an hour and more, most of it for the graph over 2.6 million images.
.PHONY: galleries
galleries: environment
	@mkdir -p reports
	papermill nbs/benchmark.ipynb reports/benchmark-galleries.ipynb -p report reports/benchmark-galleries \
	  -y "{gallery_rows: [1000000, 2600000], searches: [ivf, ivfpq, hnsw]}" </dev/null
	python -m fromage.core.pages reports/benchmark-galleries.ipynb

.PHONY: compose
compose: environment
	papermill nbs/compose.ipynb reports/compose-mini.ipynb -p remedies all -p seeds 3 -p steps 80 -p learning_rate 0.006 -p train_examples 12000 \
	  -p validation_examples 600 -p output data/runs/compose-mini -p report reports/compose-mini </dev/null
	python -m fromage.core.pages reports/compose-mini.ipynb

.PHONY: conformance
conformance: environment
	@OMP_NUM_THREADS=1 python -m fromage.model.architectures

.PHONY: demo rate owner
demo: environment
	@python -m fromage.chat.command demo --port $(or $(PORT),8866) --preset $(or $(PRESET),mini)
rate: environment
	@python -m fromage.study.page --port $(or $(PORT),8867) --study "$(STUDY)"
owner: environment
	@python -m fromage.study.owner --port $(or $(PORT),8868) --study "$(STUDY)" --address "$(ADDRESS)"

# The network is used here; what is there already is not fetched again.
.PHONY: smollm2 pictures more-pictures wordnet emoji-pairs emoji-gallery
pictures: environment
	@python -m fromage.real.catalogue openmoji
more-pictures: environment
	@python -m fromage.real.catalogue more
# Drawings of emoji with captions, as two sets of shards, and the pictures that the preset emoji answers with.
emoji-pairs: pictures more-pictures
	@python -m fromage.real.training_pairs
emoji-gallery: pictures
	@python -m fromage.real.training_pairs gallery
smollm2 wordnet: environment
	@python -m fromage.real.fetching $@

# What cannot be fetched is named, and left out of the record.
.PHONY: what-is-real knowledge
what-is-real: environment
	-@python -m fromage.real.fetching smollm2 wordnet
	-@python -m fromage.real.catalogue openmoji

knowledge: what-is-real
	papermill nbs/eval_knowledge.ipynb reports/eval_knowledge-emoji.ipynb -p pictures data/pictures/openmoji-rendered/shards \
	  -p language_model data/models/smollm2-135m -p wordnet data/texts/wordnet -p precision bfloat16 \
	  -p steps 400 -p retrieval_dim 512 -p seeds 3 -p growth_seeds 1 -p sought 20 -p report reports/eval_knowledge-emoji </dev/null
	python -m fromage.core.pages reports/eval_knowledge-emoji.ipynb

.PHONY: real smol-runs checkpoints
real: what-is-real
	papermill nbs/eval_knowledge.ipynb reports/eval_knowledge-checkpoint.ipynb -p pictures data/pictures/openmoji-rendered/shards \
	  -p language_model data/models/smollm2-135m -p wordnet data/texts/wordnet -p maps False -p shots 0 \
	  -p checkpoint emoji -p report reports/eval_knowledge-checkpoint </dev/null
	python -m fromage.core.pages reports/eval_knowledge-checkpoint.ipynb

# Orders about drawings need a second artist's.
smol-runs: what-is-real
	-@python -m fromage.real.catalogue twemoji
	papermill nbs/eval_vist.ipynb reports/eval_vist-smol.ipynb -p preset smol -p protocol corrected -p limit 100 -p report reports/eval_vist-smol </dev/null
	papermill nbs/eval_visdial.ipynb reports/eval_visdial-smol.ipynb -p preset smol -p answered 8 -p searched 160 -p report reports/eval_visdial-smol </dev/null
	papermill nbs/tell_stories.ipynb reports/tell_stories-smol.ipynb -p preset smol -p limit 20 -p output data/runs/tell_stories-smol \
	  -p report reports/tell_stories-smol </dev/null
	papermill nbs/show_examples.ipynb reports/show_examples-smol.ipynb -p preset smol -p episodes 60 -p report reports/show_examples-smol </dev/null
	papermill nbs/show_examples.ipynb reports/show_examples-emoji.ipynb -p preset emoji -p drawings 300 -p report reports/show_examples-emoji </dev/null
	papermill nbs/ablate.ipynb reports/ablate-smol.ipynb -p preset smol -p steps 60 -p learning_rate 0.003 \
	  -p variants "all layers tuned; all layers tuned, rate / 10; all layers tuned, rate / 100" \
	  -p train_examples 4000 -p validation_examples 200 -p pairs 200 -p stories 60 -p dialogues 40 -p answered 1 -p episodes 30 -p texts 200 \
	  -p cache data/runs/ablate-smol -p report reports/ablate-smol </dev/null

# A killed training goes on where it was; a finished one is done again.
checkpoints: smollm2 emoji-pairs
	for preset in emoji smol; do \
	  papermill nbs/train.ipynb reports/train-$$preset.ipynb -p preset $$preset -p output data/runs/train-$$preset \
	    -p report reports/train-$$preset </dev/null || exit 1; \
	  python -m fromage.model.grounding data/runs/train-$$preset/settled.safetensors data/$$preset/checkpoint.safetensors || exit 1; \
	done

# Twenty minutes on two cores that do nothing else; beside other work many times that, though its threads wait passively.
.PHONY: tower
tower: environment
	OMP_WAIT_POLICY=passive papermill nbs/pretrain_tower.ipynb reports/pretrain_tower-drawings.ipynb -p pictures made -p steps 1100 \
	  -p batch_size 256 -p folder data/emoji/tower -p report reports/pretrain_tower-drawings </dev/null
	python -m fromage.core.pages reports/pretrain_tower-drawings.ipynb

# By the shipped tower; a few minutes.
.PHONY: unseen
unseen: environment
	papermill nbs/eval_unseen.ipynb reports/eval_unseen-drawings.ipynb -p pictures made -p tower data/emoji/tower \
	  -p language_model data/models/smollm2-135m -p context "dictionary with two entries" -p checkpoint emoji -p retrieval_dim 256 \
	  -p steps 800 -p batch_size 256 -p seeds 3 -p report reports/eval_unseen-drawings </dev/null
	python -m fromage.core.pages reports/eval_unseen-drawings.ipynb

# The test that looks at the page keeps a picture.
.PHONY: picture
picture: environment
	python -m pytest -q tests/test_browser.py -k picture_of_the_readme
	cp tests/screenshots/readme.png reports/demo.png

# The same as in the tests, with more cases, and for longer. What was tried with the same code is not tried again.
.PHONY: attack
attack: environment
	OMP_NUM_THREADS=1 papermill nbs/attack.ipynb reports/attack.ipynb -p cases 50000 -p kills 30 -p minutes 60 -p report reports/attack </dev/null
	python -m fromage.core.pages reports/attack.ipynb

# Fails where a figure is different. LIMIT: seconds that the record's run may have taken.
.PHONY: verify
verify: environment
	@mkdir -p data/runs/verify
	papermill nbs/verify.ipynb data/runs/verify/verify.ipynb -p record "$(RECORD)" -p limit $(or $(LIMIT),600) </dev/null

# The drawing in the README.
.PHONY: rooms
rooms: environment
	@python -m fromage.core.rooms

# Pictures, tables and lines that readers of the notebooks see without running anything.
.PHONY: outputs
outputs: environment
	@OMP_NUM_THREADS=1 python -m fromage.core.outputs
	nbdev_clean

# Strict: a warning of mkdocs and a link that leads nowhere are errors.
.PHONY: docs
docs: environment
	@python -m fromage.core.site

# Quick when everything is there. `.ci/installed` compares what is installed with settings.ini.
.PHONY: environment
environment:
	@test -x "$(ENVIRONMENT)/bin/python" || $(PYTHON) -m venv "$(ENVIRONMENT)"
	@status=0; python .ci/installed || status=$$?; \
	if test $$status = 3 -a "$(ENVIRONMENT)" = "$(CURDIR)/.venv"; then $(PYTHON) -m venv --clear .venv; fi; \
	if test $$status != 0; then \
	  python -m pip --version >/dev/null 2>&1 || python -m ensurepip; \
	  python -m pip install --editable '.[dev]'; \
	fi

# Clean and export must change nothing (in a copy); then every notebook at its defaults, the longest beside the others; then
# pytest. All three always run, and one that fails makes the whole fail.
.PHONY: test
test: environment
	@status=0; \
	python -m pytest -q tests/test_repository.py || status=1; \
	export OMP_NUM_THREADS=1; \
	nbdev_test --path nbs/train.ipynb --do_print & \
	nbdev_test --skip_file_re '^([_.]|train\.)' --n_workers 2 --do_print --timing || status=1; \
	wait $$! || status=1; \
	python -m pytest -n 2 --dist loadfile --ignore tests/test_repository.py || status=1; \
	exit $$status

.PHONY: clean clean-environment clean-reports
clean: clean-reports
	rm -rf data/mini/rendered _docs

clean-reports:
	rm -f reports/*.ipynb reports/*.html

clean-environment:
	rm -rf .venv *.egg-info
