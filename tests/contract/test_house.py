"""What holds for every room: public faces, lazy imports, docstrings, configs that survive JSON, doctests."""

from __future__ import annotations

import doctest
import importlib
import json
import pkgutil
import subprocess
import sys

import pytest

import postgrad
from postgrad.core.config import Config, resolve, validate, walk_fields
from postgrad.core.errors import ConfigError
from postgrad.core.recipes import shipped_recipes
from postgrad.influence.config import InfluenceConfig
from postgrad.mara.config import ExplainConfig, MeasureConfig
from postgrad.playbook.config import LearnConfig
from postgrad.rl import RLConfig
from postgrad.scaling import ScalingConfig
from postgrad.thought.config import AutoencoderConfig, TeamConfig

FACES = [
    "postgrad",
    "postgrad.core.models",
    "postgrad.engines",
    "postgrad.engines.chat",
    "postgrad.influence",
    "postgrad.mara",
    "postgrad.memory",
    "postgrad.playbook",
    "postgrad.rl",
    "postgrad.scaling",
    "postgrad.tasks",
    "postgrad.thought",
]
MODULES = sorted(
    m.name for m in pkgutil.walk_packages(postgrad.__path__, "postgrad.") if "__main__" not in m.name
)
CONFIGS: list[type[Config]] = [
    AutoencoderConfig,
    ExplainConfig,
    InfluenceConfig,
    LearnConfig,
    MeasureConfig,
    RLConfig,
    ScalingConfig,
    TeamConfig,
]


@pytest.mark.parametrize("name", FACES)
def test_the_public_face_is_sorted_and_complete(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__all__ == sorted(module.__all__)
    for member in module.__all__:
        assert getattr(module, member) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        module.nothing  # noqa: B018


@pytest.mark.parametrize("name", FACES)
def test_what_the_public_face_has_stays_when_its_modules_are_imported(name: str) -> None:
    package = importlib.import_module(name)
    before = {member: getattr(package, member) for member in package.__all__}
    for module in pkgutil.iter_modules(package.__path__):
        if module.name in before:
            importlib.import_module(f"{name}.{module.name}")
    assert {member: getattr(package, member) for member in package.__all__} == before


def test_importing_postgrad_and_its_configs_needs_no_torch() -> None:
    code = (
        "import sys, postgrad.rl.config, postgrad.tasks, postgrad.engines, postgrad.scaling.api; "
        "print('torch' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


@pytest.mark.parametrize("name", MODULES)
def test_every_module_and_public_function_says_what_it_is(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, name
    for member, value in vars(module).items():
        if getattr(value, "__module__", None) == name and not member.startswith("_") and callable(value):
            if "TypeVar" in type(value).__name__ or getattr(value, "__origin__", None) is not None:
                continue
            assert value.__doc__, f"{name}.{member}"


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_are_true(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("config_type", CONFIGS)
def test_a_config_survives_json_and_every_field_has_help(config_type: type[Config]) -> None:
    config = config_type()
    assert validate(config_type, json.loads(json.dumps(config.model_dump(mode="json")))) == config
    undocumented = [path for path, info in walk_fields(config_type) if not info.description]
    assert not [path for path in undocumented if path.count(".") < 1], undocumented


@pytest.mark.parametrize(
    ("room", "name", "config"),
    [
        (room, name, config)
        for room, config in (("rl", RLConfig), ("playbook", LearnConfig), ("thought", TeamConfig))
        for name in shipped_recipes(room)
    ],
)
def test_shipped_recipes_are_valid(room: str, name: str, config: type[Config]) -> None:
    resolve(config, shipped_recipes(room)[name])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"optimizer.lrr": 1}, "Unknown key 'optimizer.lrr'. Did you mean 'optimizer.lr'?"),
        ({"lr": 1}, "Did you mean 'optimizer.lr'?"),
        ({"algorithm.cap": -1}, r"algorithm.cap: Input should be greater than 0 \(received -1\)"),
        ({"algorithm.loss": "ppo"}, "algorithm.loss: Input should be 'cispo'"),
        ({"length.max_completion_tokens": 64}, "leaves no room for an answer"),
        ({"optimizer.lr": float("nan")}, "optimizer.lr"),
    ],
)
def test_bad_configs_are_answered_by_name(overrides: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        resolve(RLConfig, None, overrides)


def test_without_a_model_the_embedded_recipe_is_the_default() -> None:
    from postgrad.rl.config import make_config

    embedded = make_config(tasks=["gcd", "chain_sum"], overrides={"steps": 7})
    assert embedded.steps == 7
    assert [task.name for task in embedded.data.tasks] == ["gcd", "chain_sum"]
    assert embedded.data.tasks[0].options == {"min_value": 2, "max_value": 60}  # the recipe's
    assert embedded.length.max_completion_tokens == 16
    given = make_config(tasks=["gcd"], overrides={"model.path": "somewhere"})
    assert given.length.max_completion_tokens == 14336
    assert given.data.tasks[0].options == {}


PRESETS = {
    # the rows of docs/rooms/rl.md: loss, off-policy, aggregation, advantage norm, zero variance, fp32 head
    "scalerl": ("cispo", "pipeline", "prompt", "batch", "drop", True),
    "deepseek-grpo": ("grpo", "ppo", "sample", "group", "keep", False),
    "qwen2.5-dapo": ("dapo", "ppo", "prompt", "group", "drop", False),
    "magistral": ("dapo", "pipeline", "prompt", "batch", "drop", False),
    "minimax-m1": ("cispo", "ppo", "prompt", "group", "drop", True),
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_the_algorithm_and_nothing_of_model_tasks_and_sizes(name: str) -> None:
    from postgrad.core.config import read_toml
    from postgrad.core.recipes import find_recipe
    from postgrad.rl.config import make_config

    data = read_toml(find_recipe(name))
    assert set(data) <= {"algorithm", "schedule", "length"}
    alone = make_config(data, overrides={"model.path": "somewhere"}, tasks=["gcd"])
    on_top = make_config(preset=data)
    embedded = make_config()
    for config in (alone, on_top):
        algorithm = config.algorithm
        assert (
            algorithm.loss,
            config.schedule.mode,
            algorithm.aggregation,
            algorithm.advantage_norm,
            algorithm.zero_variance,
            algorithm.fp32_head,
        ) == PRESETS[name]
        assert config.schedule.k == 8
    assert (on_top.model, on_top.data, on_top.optimizer, on_top.length) == (
        embedded.model,
        embedded.data,
        embedded.optimizer,
        embedded.length,
    )
    assert alone.length.interrupt_min == (10240 if name == "scalerl" else None)
    assert make_config(preset=data, overrides={"algorithm.loss": "gspo"}).algorithm.loss == "gspo"


def test_the_preset_scalerl_is_the_default() -> None:
    assert resolve(RLConfig, shipped_recipes()["scalerl"]) == RLConfig()


def test_defaults_are_the_papers() -> None:
    """ScaleRL §3-4 and §A, so that nobody changes one by accident."""
    config = RLConfig()
    assert (config.algorithm.prompts_per_batch, config.algorithm.samples_per_prompt) == (48, 16)
    assert (config.algorithm.loss, config.algorithm.aggregation, config.algorithm.advantage_norm) == (
        "cispo",
        "prompt",
        "batch",
    )
    assert (config.algorithm.zero_variance, config.algorithm.history_threshold) == ("drop", 0.9)
    assert (config.algorithm.truncated, config.algorithm.fp32_head) == ("exclude", True)
    assert (config.schedule.mode, config.schedule.k) == ("pipeline", 8)
    assert (config.optimizer.lr, config.optimizer.warmup_steps, config.optimizer.eps) == (5e-7, 100, 1e-15)
    assert (config.optimizer.weight_decay, config.length.interrupt_min, config.length.interrupt_max) == (
        0.01,
        10240,
        12288,
    )
