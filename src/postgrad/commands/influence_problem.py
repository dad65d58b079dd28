"""What `influence validate` and `prune` share: the problem that is trained again, a run to go on with, scores made once."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from postgrad.commands.resume import record_inputs, resume_run
from postgrad.core.errors import ConfigError
from postgrad.core.run import Run
from postgrad.core.runfiles import LineFile, pretty_json, replace_file, to_plain
from postgrad.influence.config import SAMPLED, InfluenceConfig, RetrainConfig
from postgrad.influence.data import Example, read_examples

RETRAINED_FILE = "retrained.jsonl"
SCORES_FILE = "scores.safetensors"


class Source:
    """Where a problem comes from: `BASE` with texts, or a function.

    Raises:
        ConfigError: texts are missing, or given to a function.
        DataError: a file cannot be read.
    """

    def __init__(
        self,
        base: str,
        train: Path | None,
        query: Path | None,
        model: str | None,
        device: str,
        config: RetrainConfig,
    ) -> None:
        self.base, self.model, self.device = base, model, device
        self.is_function = ":" in base and not Path(base).exists()
        if self.is_function:
            if train is not None or query is not None or model is not None:
                raise ConfigError(f"{base} brings its own data: leave --train, --query and --model out.")
            self.train: list[Example] = []
            self.query: list[Example] = []
            return
        if train is None or query is None:
            raise ConfigError("Say what is trained on and what is asked: --train DATA --query DATA.")
        self.train, self.query = read_examples(train, config), read_examples(query, config)

    @property
    def name(self) -> str:
        """For a run's directory."""
        return self.base.rpartition(":")[2] if self.is_function else Path(self.base).resolve().name

    def identity(self) -> object:
        """Everything that results depend on but options: the same source has the same."""
        weights = [
            _digest_model(Path(path)) for path in (self.base, self.model) if path and not self.is_function
        ]
        return [self.base, self.model, self.train, self.query, weights]

    def check(self) -> None:
        """That the models or the function are there, before a run is begun. Raises what `problem` would."""
        from postgrad.core.models.paths import locate
        from postgrad.influence.problem import load_problem, require_retrain

        if self.is_function:
            require_retrain(load_problem(self.base))
            return
        for path in (self.base, self.model):
            if path:
                locate(path, None, trust_remote_code=False)

    def problem(self, config: RetrainConfig) -> Any:
        """See `postgrad.influence.problem`. A model that is to be attributed and was not given is trained here."""
        from postgrad.influence.problem import TextProblem, load_problem

        if self.is_function:
            return load_problem(self.base)
        from postgrad.influence.examples import make_examples

        train, query = make_examples(self.train, "training"), make_examples(self.query, "query")
        if self.model is None:
            print(f"training {self.base} on all {len(train)} examples", flush=True)
        return TextProblem(self.base, train, query, config, model=self.model, device=self.device)


class Work(NamedTuple):
    """What both commands do theirs with.

    Attributes:
        run: begun, or gone on with.
        problem: what is trained again.
        scores: of each method: `scores` [Q, N], `seconds`, `problems`.
        models: that are trained again, each once (`Retrained`).
    """

    run: Run
    problem: Any
    scores: dict[str, dict[str, Any]]
    models: Any


@contextlib.contextmanager
def working(
    out: Path,
    kind: str,
    config: RetrainConfig,
    source: Source,
    methods: Sequence[str],
    argv: list[str],
    *,
    overwrite: bool,
    resume: bool,
) -> Generator[Work]:
    """Opens the run, makes the problem and the scores of every method, and keeps the models that are trained."""
    with _open_run(out, kind, config, source, argv, overwrite=overwrite, resume=resume) as run:
        problem = source.problem(config)
        scores = _scores_of(problem, config, methods, run)
        models, file = _retrained(problem, run)
        with contextlib.closing(file):
            yield Work(run, problem, scores, models)


def _open_run(
    out: Path,
    kind: str,
    config: RetrainConfig,
    source: Source,
    argv: list[str],
    *,
    overwrite: bool,
    resume: bool,
) -> Run:
    """A new run with the source's identity, or the one that is to go on."""
    source.check()
    identity = source.identity()
    if resume:
        run = resume_run(out, kind, config, argv, identity, quiet=True)
        LineFile(run.path / RETRAINED_FILE).trim_torn_line()  # its model is trained again
        return run
    run = Run.create(out, config, command=argv, kind=kind, seed=config.seed, overwrite=overwrite, quiet=True)
    for name in (RETRAINED_FILE, SCORES_FILE):
        (run.path / name).unlink(missing_ok=True)
    record_inputs(run, identity)
    return run


def _scores_of(
    problem: Any, config: RetrainConfig, methods: Sequence[str], run: Run
) -> dict[str, dict[str, Any]]:
    """`scores` [Q, N], `seconds` and `problems` of each method; kept in the run, so that each is made once."""
    from safetensors import safe_open
    from safetensors.torch import save

    from postgrad.influence.api import run as attribute

    options = config.model_dump(include=set(InfluenceConfig.model_fields))
    path = run.path / SCORES_FILE
    tensors: dict[str, Any] = {}
    said: dict[str, str] = {}
    if path.is_file():
        with safe_open(path, "pt") as file:
            said = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    for method in methods:
        if method in tensors:
            continue
        settings = options | {"method": method, "tokens": False}
        if method not in SAMPLED:
            settings["max_draws"] = 0  # of the others alone
        result = attribute(problem.module, problem.train, problem.queries, InfluenceConfig(**settings))
        seconds = result.diagnostics["time/attribute_s"]
        tensors[method] = result.scores.contiguous()
        said[method] = json.dumps({"seconds": seconds, "problems": result.problems})
        replace_file(path, save(tensors, said))
        print(
            f"{method}: {result.scores.shape[0]} × {result.scores.shape[1]} scores in {seconds:.1f} s",
            flush=True,
        )
    return {method: {"scores": tensors[method], **json.loads(said[method])} for method in methods}


def _retrained(problem: Any, run: Run) -> tuple[Any, LineFile]:
    """Models that are trained again, each once and kept in the run; close the file at the end."""
    from postgrad.influence.validate import Retrained

    file = LineFile(run.path / RETRAINED_FILE)

    def record(row: Mapping[str, Any]) -> None:
        file.append([to_plain(dict(row))[0]])
        file.sync()

    return Retrained(problem, file.read(), record), file


def show_progress(done: int, total: int) -> None:
    """A line now and then."""
    if done == total or done % max(1, total // 20) == 0:
        print(f"trained {done} of {total}", flush=True)


def write_record(run: Run, name: str, record: Mapping[str, Any]) -> None:
    """A result file of the run."""
    replace_file(run.path / name, pretty_json(to_plain(dict(record))[0]))


def _digest_model(folder: Path) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.json")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()
