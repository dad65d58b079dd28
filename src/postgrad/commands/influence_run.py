"""`postgrad influence run`."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from postgrad.commands.influence_heatmap import TokenRecords
from postgrad.commands.influence_plan import check_dry_options, show_plan
from postgrad.commands.influence_show import RESULT_FILE, rewrite_report, show_record
from postgrad.commands.resume import resume_run
from postgrad.core.config import validate
from postgrad.core.errors import ConfigError, SamplingError
from postgrad.core.run import Run, check_free
from postgrad.core.runfiles import LineFile, pretty_json, remove_tree, replace_file, to_plain
from postgrad.influence.config import DRAWN, InfluenceConfig
from postgrad.influence.data import Example, read_examples

KIND = "influence.run"
_SCORES = "scores.jsonl"
_PARQUET = "scores.parquet"
_CHAINS = "chains"
_RANKED = 50
_BATCH = 50_000


def main(
    model: str,
    train: Path,
    query: Path | None,
    prompts: tuple[str, ...],
    checkpoints: tuple[Path, ...],
    out: Path | None,
    overwrite: bool,
    resume: bool,
    device: str,
    options: Mapping[str, Any],
    argv: list[str],
    *,
    dry_run: bool = False,
    json_output: bool = False,
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
    check_dry_options(dry_run, json_output)
    if resume:
        _check_resumable(out, config, overwrite)
    else:
        check_free(out, overwrite=overwrite)
    if dry_run:
        return show_plan(model, rows, queries, prompts, config, device, out, json_output=json_output)

    from postgrad.core.models import load
    from postgrad.influence.api import answer, check
    from postgrad.influence.checkpoints import find_checkpoints
    from postgrad.influence.multi import check_checkpoints

    loaded = load(model, device=device)
    for number, prompt in enumerate(prompts, 1):
        said = answer(loaded, prompt, config.answer_tokens)
        queries.append(Example(f"prompt {number}", said.completion, prompt))
        print(f"{prompt}\n  {said.completion}", flush=True)
    found = find_checkpoints(checkpoints) if checkpoints else []
    check(loaded, rows, queries, config, out / _CHAINS)
    if found:
        check_checkpoints(found, config)
    directory = _begin(out, config, argv, str(loaded.device), len(found), overwrite=overwrite, resume=resume)
    try:
        with directory:
            record = _attribute(directory, loaded, rows, queries, found, config, resume=resume)
    except KeyboardInterrupt:
        words = [word for word in argv if word not in ("--overwrite", "--resume")]
        print(f"Stopped. Go on with: {shlex.join([*words, '--resume'])}")
        raise
    remove_tree(directory.path / _CHAINS)
    page = rewrite_report(directory)
    show_record(record, count=5)
    print(f"\nreport: {page}")
    if record["problems"]:
        raise SamplingError(record["withheld"])
    return 0


def _check_resumable(out: Path, config: InfluenceConfig, overwrite: bool) -> None:
    if overwrite:
        raise ConfigError("--resume keeps the run and --overwrite throws it away; give one of them.")
    if config.method not in DRAWN:
        raise ConfigError(
            f"Method {config.method} keeps nothing before its end, so it cannot go on. Begin anew: --overwrite."
        )
    if Run.open(out).status == "finished":
        raise ConfigError(f"{out} is finished. Its rankings: postgrad influence show {out}")


def _begin(
    out: Path,
    config: InfluenceConfig,
    argv: list[str],
    device: str,
    num_checkpoints: int,
    *,
    overwrite: bool,
    resume: bool,
) -> Run:
    """A new run, or the one in `out` with its metrics cut back to the draws that its chains have."""
    sampled = config.method in DRAWN
    shown: dict[str, Any] = {
        "device": device,
        "headline": (("chain/number", "chain", "d"), ("chain/loss", "loss", ".4f")),
        "total_steps": config.chains * config.num_draws * max(1, num_checkpoints)
        if sampled and config.most_draws == config.num_draws
        else None,
    }
    if resume:
        from postgrad.influence.multi import count_draws

        run = resume_run(out, KIND, config, argv, **shown)
        run.truncate_after(count_draws(out / _CHAINS, num_checkpoints) - 1)
        return run
    run = Run.create(out, config, command=argv, kind=KIND, seed=config.seed, overwrite=overwrite, **shown)
    for name in (_SCORES, _PARQUET, RESULT_FILE, _CHAINS):
        remove_tree(run.path / name)
    return run


def _attribute(
    directory: Run,
    model: Any,
    rows: Any,
    queries: Any,
    checkpoints: list[Path],
    config: InfluenceConfig,
    *,
    resume: bool,
) -> dict[str, Any]:
    """Scores in the run, and what result.json says."""
    from postgrad.influence.api import run
    from postgrad.influence.multi import run_checkpoints

    kept: dict[str, Any] = {"log": directory.log, "state": directory.path / _CHAINS}
    try:
        if checkpoints:
            result = run_checkpoints(checkpoints, rows, queries, config, model=model, **kept)
        else:
            result = run(model, rows, queries, config, **kept)
    except ConfigError:
        if resume:  # other data: the run is what it was
            directory.finish("interrupted")
        raise
    draws = round(result.diagnostics.get("sampler/draws", 0.0)) * max(1, len(checkpoints))
    directory.log(draws, result.diagnostics)
    record = _record(result)
    record["notes"] = [*result.notes, *_write_scores(directory.path, result)]
    record = to_plain(record)[0]
    replace_file(directory.path / RESULT_FILE, pretty_json(record))
    return record


def _write_scores(folder: Path, result: Any) -> list[str]:
    """All pairs as JSON lines, and as Parquet where pyarrow is installed, some at a time; what is to be said about it."""
    for name in (_SCORES, _PARQUET):
        (folder / name).unlink(missing_ok=True)
    arrow = parquet = None
    with contextlib.suppress(ImportError):
        arrow, parquet = (importlib.import_module(name) for name in ("pyarrow", "pyarrow.parquet"))
    with contextlib.ExitStack() as open_files:
        file, writer = open_files.enter_context(contextlib.closing(LineFile(folder / _SCORES))), None
        rows = _rows(result)
        while some := list(itertools.islice(rows, _BATCH)):
            file.append(some)
            if arrow is None or parquet is None:
                continue
            table = arrow.Table.from_pylist(some)
            if writer is None:
                writer = open_files.enter_context(parquet.ParquetWriter(folder / _PARQUET, table.schema))
            writer.write_table(table)
    return (
        []
        if arrow is not None
        else ["scores are JSON lines alone; pip install 'postgrad[data]' adds Parquet"]
    )


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

    tokens = TokenRecords(result.tokens) if result.tokens is not None and result.train else None

    def ranked(query: int, entries: Any) -> list[dict[str, Any]]:
        found = [entry._asdict() for entry in entries]
        if tokens is not None:
            for entry in found[: tokens.count]:
                entry |= tokens.of_example(query, entry["number"])
        return found

    queries: list[dict[str, Any]] = []
    for index, (name, text) in enumerate(result.queries):
        row: dict[str, Any] = {"id": name, "text": text}
        if tokens is not None:
            row |= tokens.of_query(index)
        row["proponents"] = ranked(index, result.proponents(index, _RANKED, anyway=True))
        row["opponents"] = ranked(index, result.opponents(index, _RANKED, anyway=True))
        queries.append(row)
    if tokens is not None and tokens.count < _RANKED:
        result.notes.append(
            f"result.json has the token scores of the first {tokens.count} of each ranking alone"
        )
    return {
        "num_train": len(result.train),
        "problems": result.problems,
        "withheld": withheld(result.problems) if result.problems else "",
        "diagnostics": result.diagnostics,
        "llc": None if result.llc is None else result.llc._asdict(),
        "checkpoints": [
            {
                "checkpoint": part.checkpoint,
                "share": part.share,
                "diagnostics": part.result.diagnostics,
                "problems": part.result.problems,
            }
            for part in getattr(result, "parts", [])
        ],
        "queries": queries,
    }
