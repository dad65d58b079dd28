"""The command line: what it passes on, what it refuses and how, and that help is cheap."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import postgrad.cli
from postgrad.cli import main
from postgrad.commands import cite, doctor
from postgrad.core.config import Config
from postgrad.core.errors import ConfigError, RunError
from postgrad.core.recipes import find_recipe
from postgrad.core.run import Run

SOURCE = Path(postgrad.cli.__file__).parents[2]


def python(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment,
        **options,
    )


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replaces the two heavy commands and collects what they are called with."""
    seen: list[dict[str, Any]] = []

    def record(**arguments: Any) -> int:
        seen.append(arguments)
        return 0

    for name in ("rl_train", "rl_eval"):
        module = types.ModuleType(f"postgrad.commands.{name}")
        module.main = record  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return seen


# -- help --------------------------------------------------------------------------------------------------

HEAVY = ("torch", "numpy", "transformers", "pydantic", "rich", "jinja2", "matplotlib")
VERBS = (
    [],
    ["rl"],
    ["rl", "train"],
    ["rl", "ablate"],
    ["rl", "plan"],
    ["rl", "eval"],
    ["runs"],
    ["report"],
    ["doctor"],
    ["cite"],
    ["mara"],
    ["playbook"],
    ["playbook", "learn"],
    ["playbook", "eval"],
    ["scaling"],
    ["thought"],
    ["thought", "fit"],
    ["thought", "eval"],
    ["thought", "inspect"],
    ["thought", "run"],
)


def test_no_help_imports_anything_heavy() -> None:
    code = f"""
import contextlib, io, sys
from postgrad.cli import main
for words in {VERBS!r}:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main([*words, "--help"]) == 0, words
    assert out.getvalue().startswith("Usage: postgrad"), out.getvalue()
    assert main(["--version"]) == 0
print(sorted(set({HEAVY!r}) & set(sys.modules)))
"""
    done = python("-c", code)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


def test_the_config_help_lists_every_option_and_imports_no_torch(capsys: pytest.CaptureFixture[str]) -> None:
    from postgrad.core.config import walk_fields
    from postgrad.rl.config import RLConfig

    code = (
        "import sys; from postgrad.cli import main; main(['rl', 'train', '--help-config']);"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert python("-c", code).stdout.splitlines()[-1] == "[]"
    assert main(["rl", "train", "--help-config"]) == 0
    out = capsys.readouterr().out
    for path, _ in walk_fields(RLConfig):
        assert f"--{path} " in out
    assert "cispo|grpo|dapo|gspo|reinforce" in out
    assert "[5e-07]" in out


def test_python_dash_m() -> None:
    done = python("-m", "postgrad", "--version")
    assert done.returncode == 0
    assert done.stdout.startswith("postgrad ")


# -- rl train and rl eval ----------------------------------------------------------------------------------


def test_everything_reaches_the_train_command(calls: list[dict[str, Any]], tmp_path: Path) -> None:
    recipe = tmp_path / "my recipe.toml"
    recipe.write_text("steps = 3\n")
    words = [
        "rl",
        "train",
        str(recipe),
        "--steps",
        "5",
        "--task",
        "gcd",
        "--optimizer.lr=1e-4",
        "--out",
        "runs/ü x",
        "--cluster",
        "local",
    ]
    assert main([*words, "--task", "chain_sum", "--from", "old", "--dry-run", "--overwrite"]) == 0
    assert calls == [
        {
            "recipe": recipe,
            "overrides": {"steps": 5, "optimizer.lr": 1e-4},
            "tasks": ("gcd", "chain_sum"),
            "out": Path("runs/ü x"),
            "resume": False,
            "overwrite": True,
            "from_run": Path("old"),
            "dry_run": True,
            "argv": ["postgrad", *words, "--task", "chain_sum", "--from", "old", "--dry-run", "--overwrite"],
            "cluster": "local",
            "preset": None,
        }
    ]


@pytest.mark.parametrize(
    "words", [["--steps", "5", "RECIPE"], ["RECIPE", "--steps", "5"], ["--steps=5", "RECIPE"]]
)
def test_the_recipe_may_stand_anywhere(calls: list[dict[str, Any]], tmp_path: Path, words: list[str]) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text("")
    assert main(["rl", "train", *(str(recipe) if word == "RECIPE" else word for word in words)]) == 0
    assert calls[0]["recipe"] == recipe
    assert calls[0]["overrides"] == {"steps": 5}


def test_a_preset_is_found_like_a_recipe(
    calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rl", "train", "embedded", "--preset", "qwen2.5-dapo"]) == 0
    assert calls[0]["recipe"].name == "embedded.toml"
    assert calls[0]["preset"].name == "qwen2.5-dapo.toml"
    assert main(["rl", "train", "--preset", "qwen2.5-dap"]) == 2
    assert "Did you mean 'qwen2.5-dapo'?" in capsys.readouterr().err
    assert main(["rl", "train", "--preset", "--resume"]) == 2
    assert "--preset needs a value; the next word is '--resume'." in capsys.readouterr().err


def test_defaults_and_negative_values(calls: list[dict[str, Any]]) -> None:
    assert main(["rl", "train", "--seed", "-1", "--algorithm.fp32-head", "false"]) == 0
    assert calls[0]["recipe"] is None
    assert calls[0]["overrides"] == {"seed": -1, "algorithm.fp32_head": False}
    assert calls[0]["out"] is None


def test_everything_reaches_the_eval_command(calls: list[dict[str, Any]]) -> None:
    assert main(["rl", "eval", "runs/a", "--task", "gcd", "--eval.prompts", "10", "--json"]) == 0
    (call,) = calls
    assert (call["model"], call["tasks"], call["json_output"]) == ("runs/a", ("gcd",), True)
    assert call["overrides"] == {"eval.prompts": 10}
    assert call["argv"][:4] == ["postgrad", "rl", "eval", "runs/a"]


def test_the_exit_code_of_a_command_is_that_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("postgrad.commands.rl_train")
    module.main = lambda **_: 7  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert main(["rl", "train"]) == 7


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["rl", "tran"], "No command 'tran'. Did you mean 'train'?"),
        (["reprot", "x"], "No command 'reprot'. Did you mean 'report'?"),
        (
            ["zzz"],
            "Valid: cite, doctor, influence, mara, memory, playbook, report, rl, runs, scaling, thought.",
        ),
        (["rl", "train", "--overwite"], "Did you mean '--overwrite'?"),
        (["rl", "train", "--lr", "1"], "Unknown option --lr. Did you mean '--optimizer.lr'?"),
        (["rl", "train", "--optimiser.lr", "1"], "Did you mean '--optimizer.lr'?"),
        (["rl", "train", "--qqq", "1"], "--help-config list all options"),
        (
            ["rl", "train", "--schedule", "8"],
            "is a section, not an option. It has --schedule.mode, --schedule.k",
        ),
        (["rl", "train", "no.toml"], "No recipe 'no.toml': neither a file nor the name of a shipped recipe."),
        (["rl", "train", "a", "b"], "Unexpected argument 'b': the recipe is 'a' already."),
        (["rl", "train", "--resume", "--overwrite"], "--resume and --overwrite exclude each other."),
        (["rl", "train", "--resume", "--from", "x"], "--resume and --from exclude each other."),
        (["rl", "train", "--out", "--resume"], "--out needs a value; the next word is '--resume'."),
        (["rl", "train", "--out"], "requires an argument"),
        (["rl", "train", "--", "x"], "A bare '--' has no meaning here."),
        (["rl", "eval"], "Say which model"),
        (["rl", "eval", "--task", "gcd"], "Say which model"),
        (["report"], "Missing argument 'RUN'"),
        (["report", "nope"], "nope does not exist. `postgrad runs` lists the runs"),
        (["runs", "nope"], "nope is no directory"),
        (["cite", "--bogus"], "No such option"),
    ],
)
def test_wrong_words_are_answered(
    words: list[str], answer: str, calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert answer in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert calls == []


@pytest.mark.parametrize("debug", [False, True])
def test_a_deliberate_error_has_a_traceback_only_with_debug(
    debug: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: Any) -> int:
        raise RunError("the disk is on fire")

    module = types.ModuleType("postgrad.commands.rl_train")
    module.main = fail  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert main(["rl", "train", *(["--debug"] if debug else [])]) == 2
    err = capsys.readouterr().err
    assert err.endswith("Error: the disk is on fire\n")
    assert ("Traceback" in err) is debug


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(**_: Any) -> int:
        raise KeyboardInterrupt

    module = types.ModuleType("postgrad.commands.rl_train")
    module.main = interrupt  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert main(["rl", "train"]) == 130
    assert "Interrupted" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: Any) -> int:
        raise ZeroDivisionError

    module = types.ModuleType("postgrad.commands.rl_train")
    module.main = fail  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(ZeroDivisionError):
        main(["rl", "train"])


# -- recipes -----------------------------------------------------------------------------------------------


def test_recipes_by_name_path_or_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = tmp_path / "scalerl.toml"
    shipped.write_text("")
    monkeypatch.setattr("postgrad.core.recipes.shipped_recipes", lambda room: {"scalerl": shipped})
    monkeypatch.chdir(tmp_path)
    assert find_recipe("scalerl") == shipped
    with pytest.raises(ConfigError, match="Did you mean 'scalerl'"):
        find_recipe("scalrl")
    Run.create(tmp_path / "run", Config(), command=[], kind="rl.train", seed=0, quiet=True).finish()
    assert find_recipe("run") == Path("run/config.json")
    (tmp_path / "scalerl").mkdir()
    assert find_recipe("scalerl") == shipped, "a directory of that name is no recipe"


# -- runs, report, doctor, cite ----------------------------------------------------------------------------


def test_runs_prints_one_line_per_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "a rather long name of a run [bold]" + "x" * 60
    with Run.create(tmp_path / name, Config(), command=[], kind="rl.train", seed=0, quiet=True) as run:
        run.log(7, {"eval/pass_rate": 0.712, "eval/pass_rate_low": 0.66, "eval/pass_rate_high": 0.75})
    assert main(["runs", str(tmp_path)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "rl.train" in line]
    assert line.startswith(name)
    assert "71.2 % (66.0–75.0)" in line
    assert "finished" in line
    assert main(["runs", str(tmp_path), "--json"]) == 0
    assert '"pass_rate": 0.712' in capsys.readouterr().out


def test_runs_without_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", str(tmp_path)]) == 0
    assert "No runs below" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert main(["runs"]) == 2
    assert "no directory 'runs' here" in capsys.readouterr().err


def test_report_prints_where_the_page_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Run.create(tmp_path / "r", Config(), command=[], kind="rl.train", seed=0, quiet=True).finish()
    assert main(["report", str(tmp_path / "r")]) == 0
    assert Path(capsys.readouterr().out.strip()).read_text().startswith("<!doctype html>")


def test_cite_has_balanced_entries_of_all_papers() -> None:
    text = cite.bibtex()
    for arxiv in ("2510.13786", "2510.20817", "2510.15103", "2509.26544", "2510.04618", "2510.20733"):
        assert f"eprint = {{{arxiv}}}" in text
    assert text.count("{") == text.count("}")
    assert text.count("@misc{") == 6
    assert "@software{postgrad," in text


def test_cite_into_a_closed_pipe() -> None:
    code = "import sys; from postgrad.cli import main; sys.exit(main(['cite']))"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )
    os.close(writer)
    assert done.returncode in (1, 141)
    assert done.stderr == ""


def test_doctor_names_the_install_line_of_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "EXTRAS", {"envs": (("no-such-package", "no_such_module"),)})
    monkeypatch.setenv("POSTGRAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    found = {finding.topic: finding for finding in doctor.findings()}
    assert "pip install 'postgrad[envs]'" in found["extra envs"].text
    assert "no-such-package" in found["extra envs"].text
    assert found["cache"].text == f"{tmp_path / 'cache'}, not made yet"
    assert "no C++ compiler" in found["torch.compile"].text
    assert found["torch"].text
    assert found["memory"].text


def test_doctor_knows_a_build_under_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as vLLM for CPUs: the module is there, its distribution is called otherwise."""
    monkeypatch.setattr(doctor, "EXTRAS", {"vllm": (("no-such-package", "pytest"),)})
    found = {finding.topic: finding for finding in doctor.findings()}
    assert found["extra vllm"].text.startswith("pytest ")


def test_doctor_warns_of_a_torchvision_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> Any:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(doctor.importlib, "import_module", load)
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "0.1")
    assert "torchvision::nms does not exist" in doctor.torchvision_problem()
    assert "pip uninstall torchvision" in doctor.torchvision_problem()
