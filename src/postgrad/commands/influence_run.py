"""`postgrad influence run`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from postgrad.commands.influence_show import RESULT_FILE, rewrite_report, show_record
from postgrad.core.config import validate
from postgrad.core.errors import ConfigError, SamplingError
from postgrad.core.run import Run
from postgrad.core.runfiles import LineFile, pretty_json, replace_file, to_plain
from postgrad.influence.config import SAMPLED, InfluenceConfig
from postgrad.influence.data import Example, read_examples

KIND = "influence.run"
_SCORES = "scores.jsonl"
_PARQUET = "scores.parquet"
_RANKED = 50


def main(
    model: str,
    train: Path,
    query: Path | None,
    prompts: tuple[str, ...],
    checkpoints: tuple[Path, ...],
    out: Path | None,
    overwrite: bool,
    device: str,
    options: Mapping[str, Any],
    argv: list[str],
) -> int:
    """Attributes, writes the run and prints its rankings; see `postgrad influence run --help`."""
    config = validate(InfluenceConfig, options)
    if query is None and not prompts:
        raise ConfigError(
            "Say what is to be explained: --query FILE, or --prompt TEXT for the model's own answer."
        )
    rows = read_examples(train, config)
    queries = [] if query is None else read_examples(query, config)
    out = out or Path("runs/influence") / f"{Path(model).resolve().name}-{config.method}"

    from postgrad.core.models import load
    from postgrad.influence.api import answer, run
    from postgrad.influence.checkpoints import find_checkpoints
    from postgrad.influence.multi import run_checkpoints

    loaded = load(model, device=device)
    for number, prompt in enumerate(prompts, 1):
        said = answer(loaded, prompt, config.answer_tokens)
        queries.append(Example(f"prompt {number}", said.completion, prompt))
        print(f"{prompt}\n  {said.completion}", flush=True)
    found = find_checkpoints(checkpoints) if checkpoints else []
    num_draws = config.chains * config.draws * max(1, len(found)) if config.method in SAMPLED else 0
    with Run.create(
        out,
        config,
        command=argv,
        kind=KIND,
        seed=config.seed,
        overwrite=overwrite,
        device=str(loaded.device),
        headline=(("chain/number", "chain", "d"), ("chain/loss", "loss", ".4f")),
        total_steps=num_draws or None,
    ) as directory:
        for name in (_SCORES, _PARQUET, RESULT_FILE):
            (directory.path / name).unlink(missing_ok=True)
        if found:
            result = run_checkpoints(found, rows, queries, config, model=loaded, log=directory.log)
        else:
            result = run(loaded, rows, queries, config, log=directory.log)
        directory.log(num_draws, result.diagnostics)
        notes = [*result.notes, *_write_scores(directory.path, result)]
        record = to_plain({**_record(result), "notes": notes})[0]
        replace_file(directory.path / RESULT_FILE, pretty_json(record))
    page = rewrite_report(directory)
    show_record(record, count=5)
    print(f"\nreport: {page}")
    if record["problems"]:
        raise SamplingError(record["withheld"])
    return 0


def _write_scores(folder: Path, result: Any) -> list[str]:
    """All pairs as JSON lines, and as Parquet where pyarrow is installed; what is to be said about it."""
    rows = list(_rows(result))
    file = LineFile(folder / _SCORES)
    file.append(rows)
    file.close()
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError:
        return ["scores are JSON lines alone; pip install 'postgrad[data]' adds Parquet"]
    parquet.write_table(arrow.Table.from_pylist(rows), folder / _PARQUET)
    return []


def _rows(result: Any) -> Iterator[dict[str, Any]]:
    for q, (query, _) in enumerate(result.queries):
        for n, (train, _) in enumerate(result.train):
            row = {"query": query, "train": train, "score": float(result.scores[q, n])}
            for name in ("errors", "correlation"):
                found = getattr(result, name)
                if found is not None:
                    row["standard_error" if name == "errors" else name] = float(found[q, n])
            yield to_plain(row)[0]


def _record(result: Any) -> dict[str, Any]:
    """All that `show` and the report need, rankings of the first and last fifty included."""
    from postgrad.influence.result import withheld

    def ranked(entries: Any) -> list[dict[str, Any]]:
        return [entry._asdict() for entry in entries]

    return {
        "num_train": len(result.train),
        "problems": result.problems,
        "withheld": withheld(result.problems) if result.problems else "",
        "diagnostics": result.diagnostics,
        "checkpoints": [
            {
                "checkpoint": part.checkpoint,
                "share": part.share,
                "diagnostics": part.result.diagnostics,
                "problems": part.result.problems,
            }
            for part in getattr(result, "parts", [])
        ],
        "queries": [
            {
                "id": name,
                "text": text,
                "proponents": ranked(result.proponents(index, _RANKED, anyway=True)),
                "opponents": ranked(result.opponents(index, _RANKED, anyway=True)),
            }
            for index, (name, text) in enumerate(result.queries)
        ],
    }
