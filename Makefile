# make demo   creates .venv, installs, trains the embedded model with RL and shows that it got better
# make test   creates .venv, installs, runs the tests
# make check  lint, types, layers, tests
# make test-ray  the tests on a local Ray cluster, in an environment of their own: ray alone is 240 MB
# make bench  every benchmark in its quick form
VENV ?= .venv
PY := $(VENV)/bin/python
export OMP_NUM_THREADS ?= 2
export TOKENIZERS_PARALLELISM = false
UV_INSTALL = UV_FIND_LINKS="$${UV_FIND_LINKS:-$$PIP_FIND_LINKS}" $(VENV)/bin/uv pip install -q --compile-bytecode -c constraints.txt
DEMO_RUN ?= demo-run

.PHONY: demo test test-ray check lint bench bench-trl bench-attr clean

$(VENV)/bin/uv:
	python3 -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q uv

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/uv
	$(UV_INSTALL) --python $(PY) -e '.[dev]'
	touch $@

demo: $(VENV)/.installed
	$(VENV)/bin/postgrad rl train embedded --out $(DEMO_RUN) --overwrite

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(PY) -m pytest -n 2 -q

test-ray: $(VENV)/bin/uv
	python3 -m venv .venv-ray
	UV_FIND_LINKS="$${UV_FIND_LINKS:-$$PIP_FIND_LINKS}" $(VENV)/bin/uv pip install -q --python .venv-ray/bin/python \
	  -c constraints.txt -e '.[dev,ray]'
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 .venv-ray/bin/python -m pytest -q tests/cluster

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check src tests benchmarks
	$(VENV)/bin/ruff format --check src tests benchmarks
	$(VENV)/bin/basedpyright
	$(VENV)/bin/lint-imports

check: lint test

bench: $(VENV)/.installed
	$(PY) benchmarks/generation.py --quick
	$(PY) benchmarks/rl_vs_trl.py --quick
	$(PY) benchmarks/rl_faults.py --quick
	$(PY) benchmarks/scaling_fit.py --quick
	$(PY) benchmarks/scaling_calibration.py --quick
	$(PY) benchmarks/mara_tabular.py --quick
	$(PY) benchmarks/memory_step.py --quick
	$(PY) benchmarks/memory_lookup.py --quick
	$(PY) benchmarks/memory_pq.py --quick
	$(PY) benchmarks/memory_edit.py --quick
	$(PY) benchmarks/memory_core_set.py --quick
	$(PY) benchmarks/influence_lds.py --quick --no-peer --board digits
	$(PY) benchmarks/influence_leave_one_out.py --quick
	$(PY) benchmarks/influence_ablation.py --quick
	$(PY) benchmarks/influence_mislabeled.py --quick
	$(PY) benchmarks/influence_speed.py --quick
	$(PY) benchmarks/rl_async.py --quick
	$(PY) benchmarks/rl_plan.py --quick
	$(PY) benchmarks/thought_jacobian.py --quick
	$(PY) benchmarks/thought_witnesses.py --quick
	$(PY) benchmarks/thought_ledger.py --quick
	$(PY) benchmarks/playbook_prefix.py --quick
	$(PY) benchmarks/playbook_dedup.py --quick
	$(PY) benchmarks/playbook_log.py --quick
	$(PY) benchmarks/playbook_workers.py --quick
	$(PY) benchmarks/playbook_student.py --quick

# Peers live in environments of their own.
bench-trl: $(VENV)/bin/uv
	python3 -m venv .venv-trl
	UV_FIND_LINKS="$${UV_FIND_LINKS:-$$PIP_FIND_LINKS}" $(VENV)/bin/uv pip install -q --python .venv-trl/bin/python \
	  -c constraints.txt -e '.[envs,data]' 'trl>=1.16,<1.17' accelerate 'ctranslate2>=4.8,<4.9'

# kronfluence asks for torchvision, which its package never imports: its other requirements are named here.
bench-attr: $(VENV)/bin/uv
	python3 -m venv .venv-attr
	UV_FIND_LINKS="$${UV_FIND_LINKS:-$$PIP_FIND_LINKS}" $(VENV)/bin/uv pip install -q --python .venv-attr/bin/python \
	  -c constraints.txt -e . 'devinterp>=2.0.1,<2.1' accelerate einops einconv opt-einsum scikit-learn tqdm
	$(VENV)/bin/uv pip install -q --python .venv-attr/bin/python --no-deps 'kronfluence>=1.0.1,<1.1'
	.venv-attr/bin/python -c 'import devinterp.slt.bif, kronfluence, postgrad.influence'

clean:
	rm -rf $(VENV) .venv-ray .venv-trl .venv-attr $(DEMO_RUN)
