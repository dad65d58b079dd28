"""Sampled tokens per second: our torch engine against transformers' `generate` (main peer) and CTranslate2.

One small model (the embedded architecture of a recipe with random weights, fp32), the same prompts, temperature 1, no
truncation, the same threads, stop tokens disabled on every side. Only generated tokens count, and only those asked for.

- equal: B prompts of 16 tokens, 64 new tokens each.
- rl: requests in groups of 16 that share a prompt; lengths geometric with mean 20, at most 96, imposed on every side.
  Ours refills a slot when its sequence ends. `generate` gets batches of B in order, each until its longest is done
  (a StoppingCriteria per sequence). CTranslate2 has no length per sequence, so it gets the same batches, each to its longest.

`generate` is run with sdpa and with eager attention and the faster one counts. Ours is run eagerly and under torch.compile
(compile time is outside the clock and reported). CTranslate2 lives in .venv-trl (`make bench-trl`); without it, or on a
GPU, its column is empty.

floor: what one decode step needs at least on this machine: the larger of its matrix products (2·parameters FLOP a token,
timed as bare products of the same shapes) and its bytes (weights once, KV cache read once, at the speed of a copy of that
many bytes). "share" is floor time / our time; sampling, norms, softmax and bookkeeping are the rest.

    python benchmarks/generation.py [--quick] [--threads N] [--device cuda]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from _common import Case, finish, interleave, machine, peer_python, print_table, ratios
from postgrad.commands.rl_train import resolve_config
from postgrad.core.models.embedded import build
from postgrad.core.models.model import Model, save
from postgrad.core.models.quiet import quiet_transformers
from postgrad.core.recipes import find_recipe
from postgrad.core.types import Request
from postgrad.engines import TorchEngine
from postgrad.engines.torch_engine.engine import generate

PEER_SCRIPT = Path(__file__).parent / "peers" / "ct2_generate.py"
PROMPT_TOKENS, NEW_TOKENS = 16, 64
MEAN_TOKENS, MOST_TOKENS, GROUP = 20, 96, 16


class EndlessModel(Model):
    """A Model without a stop token: every completion has the length that was asked for."""

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        return (-1,)

    @property
    def pad_token_id(self) -> int:
        return 0


@dataclass(frozen=True)
class Workload:
    """Prompts [P, 16] and lengths [P] to generate, `batch` at a time."""

    name: str
    batch: int
    prompts: np.ndarray
    lengths: np.ndarray
    repeats: int = 1

    @property
    def num_tokens(self) -> int:
        return int(self.lengths.sum())

    @property
    def max_length(self) -> int:
        return PROMPT_TOKENS + int(self.lengths.max())

    @property
    def groups(self) -> list[int]:
        """Group of each prompt: those with the same tokens."""
        return np.unique(self.prompts, axis=0, return_inverse=True)[1].ravel().tolist()

    def batches(self) -> list[slice]:
        """The requests, B at a time, in order."""
        return [slice(start, start + self.batch) for start in range(0, len(self.prompts), self.batch)]


def equal_lengths(batch: int, vocab: int, repeats: int) -> Workload:
    """B different prompts, 64 new tokens each; repeated within a measurement so that it lasts long enough."""
    random = np.random.default_rng(0)
    prompts = random.integers(0, vocab, (batch, PROMPT_TOKENS))
    return Workload(f"equal B={batch}", batch, prompts, np.full(batch, NEW_TOKENS), repeats)


def rl_like(batch: int, vocab: int, requests: int) -> Workload:
    """Groups of 16 that share a prompt, geometric lengths."""
    random = np.random.default_rng(1)
    prompts = random.integers(0, vocab, (requests // GROUP, PROMPT_TOKENS)).repeat(GROUP, axis=0)
    lengths = np.minimum(random.geometric(1 / MEAN_TOKENS, requests), MOST_TOKENS)
    return Workload(f"rl B={batch}", batch, prompts, lengths)


def build_model(recipe: str, device: str) -> EndlessModel:
    """The recipe's embedded architecture with random weights and a small tokenizer; nothing is downloaded."""
    config = resolve_config(find_recipe(recipe), {}, ())
    lines = [(f"{a} + {b} =", str(a + b)) for a in range(40) for b in range(40)]
    model = build(lines, config.model.embedded)
    module: Any = model.module
    module.to(device)
    module.generation_config.eos_token_id = None
    return EndlessModel(module, model.tokenizer, source="embedded")


# -- ours --------------------------------------------------------------------------------------------------------


def our_requests(workload: Workload, seed: int, temperature: float = 1.0) -> list[Request]:
    """The workload as requests."""
    return [
        Request(index, group, prompt, max_tokens=int(length), seed=seed, temperature=temperature)
        for index, (group, prompt, length) in enumerate(
            zip(workload.groups, workload.prompts, workload.lengths, strict=True)
        )
    ]


def our_case(engine: TorchEngine, workload: Workload) -> Case:
    """Generates the workload; requests are new ones each time (other random numbers)."""
    seed = 0

    def run() -> int:
        nonlocal seed
        made = 0
        for _ in range(workload.repeats):
            seed += 1
            made += sum(sample.num_tokens for sample in generate(engine, our_requests(workload, seed)))
        return made

    return run


# -- transformers ------------------------------------------------------------------------------------------------


class StopAt(StoppingCriteria):
    """Ends sequence i at `lengths[i]` new tokens."""

    def __init__(self, lengths: torch.Tensor) -> None:
        self.total = lengths + PROMPT_TOKENS

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return input_ids.shape[1] >= self.total


def peer_batch(
    model: Model, prompts: np.ndarray, lengths: np.ndarray, *, greedy: bool = False
) -> torch.Tensor:
    """`model.generate` for one batch; the new tokens [B, longest]."""
    module: Any = model.module
    device = model.device
    tokens = torch.from_numpy(prompts).to(device)
    config = GenerationConfig(
        do_sample=not greedy,
        temperature=None if greedy else 1.0,
        top_k=None if greedy else 0,
        top_p=None if greedy else 1.0,
        max_new_tokens=int(lengths.max()),
        use_cache=True,
        pad_token_id=0,
    )
    stop = StoppingCriteriaList()
    if len(set(lengths.tolist())) > 1:
        stop.append(StopAt(torch.from_numpy(lengths).to(device)))
    with torch.inference_mode():
        result = module.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            generation_config=config,
            stopping_criteria=stop,
        )
    return result[:, PROMPT_TOKENS:]


def peer_case(model: Model, workload: Workload, attention: str) -> Case:
    """Batches of B in order; counts the tokens asked for."""
    module: Any = model.module

    def run() -> int:
        module.set_attn_implementation(attention)
        made = 0
        for _ in range(workload.repeats):
            for part in workload.batches():
                lengths = workload.lengths[part]
                width = peer_batch(model, workload.prompts[part], lengths).shape[1]
                made += int(np.minimum(lengths, width).sum())
        return made

    return run


# -- CTranslate2 -------------------------------------------------------------------------------------------------


class CTranslate2:
    """The child process of `peers/ct2_generate.py`; None from `start` where it cannot run."""

    def __init__(self, process: subprocess.Popen[str], version: str) -> None:
        self.process, self.version = process, version

    @classmethod
    def start(cls, model: Model, folder: Path, threads: int) -> CTranslate2 | None:
        """Saves the model for it and waits until it is converted."""
        python = peer_python("trl")
        if model.device.type != "cpu":
            print("CTranslate2 is compared on the CPU only; left out.")
            return None
        if not python.is_file():
            print("CTranslate2 is left out: .venv-trl is not there (make it with: make bench-trl).")
            return None
        save(model, folder)
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(
            [str(python), str(PEER_SCRIPT), str(folder), f"--threads={threads}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            error = (process.communicate()[1] or "").strip().splitlines()[-1:]
            print(f"CTranslate2 is left out: it does not start ({error[0] if error else 'no message'}).")
            return None
        return cls(process, json.loads(line)["version"])

    def ask(self, prompts: np.ndarray, num_tokens: int, **options: Any) -> dict[str, Any]:
        """One call of `generate_batch`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = {
            "prompts": prompts.tolist(),
            "num_tokens": num_tokens,
            "batch_size": len(prompts),
            "greedy": False,
        }
        self.process.stdin.write(json.dumps(request | options) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def rate(self, workload: Workload) -> float:
        """Tokens asked for per second, by the child's own clock."""
        made, seconds = 0, 0.0
        for _ in range(workload.repeats):
            for part in workload.batches():
                lengths = workload.lengths[part]
                seconds += self.ask(workload.prompts[part], int(lengths.max()))["seconds"]
                made += int(lengths.sum())
        return made / seconds

    def close(self) -> None:
        """Ends the child."""
        self.process.communicate()


# -- floor -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Floor:
    """Least seconds of one decode step of B tokens."""

    flop_s: float
    byte_s: float
    gflops: float
    gbytes_per_s: float

    @property
    def step_s(self) -> float:
        return max(self.flop_s, self.byte_s)


def best_time(work: Callable[[], object], synchronize: Callable[[], None], seconds: float = 0.3) -> float:
    """Shortest of several timings of `work`, each of about 10 ms, over `seconds`."""
    work()
    times: list[float] = []
    ended, count = time.perf_counter() + seconds, 1
    while time.perf_counter() < ended or len(times) < 3:
        synchronize()
        started = time.perf_counter()
        for _ in range(count):
            work()
        synchronize()
        spent = time.perf_counter() - started
        times.append(spent / count)
        if spent < 0.01:
            count *= 2
    return min(times)


def measure_floor(model: Model, batch: int, context: float, synchronize: Callable[[], None]) -> Floor:
    """Times bare matrix products of the model's shapes and a copy of the step's bytes.

    Args:
        context: mean number of cache entries that a token reads.
    """
    config: Any = model.module.config
    device = model.device
    width, inner, hd = config.hidden_size, config.intermediate_size, config.head_dim
    heads, kv_heads, layers = (
        config.num_attention_heads,
        config.num_key_value_heads,
        config.num_hidden_layers,
    )
    shapes = [((heads + 2 * kv_heads) * hd, width), (width, heads * hd), (2 * inner, width), (width, inner)]
    products = [shape for _ in range(layers) for shape in shapes] + [(config.vocab_size, width)]
    weights = [torch.randn(shape, device=device) for shape in products]
    inputs = {columns: torch.randn(batch, columns, device=device) for _, columns in products}
    with torch.inference_mode():
        flop_s = best_time(
            lambda: [torch.nn.functional.linear(inputs[w.shape[1]], w) for w in weights], synchronize
        )
    flop = 2 * batch * sum(rows * columns for rows, columns in products)
    cache = batch * context * 2 * kv_heads * hd * layers * 4
    num_bytes = cache + 4 * sum(rows * columns for rows, columns in products)
    source = torch.empty(int(num_bytes / 8), device=device)  # read and written once each: num_bytes in all
    target = torch.empty_like(source)
    byte_s = best_time(lambda: target.copy_(source), synchronize)
    return Floor(flop_s, byte_s, flop / flop_s / 1e9, num_bytes / byte_s / 1e9)


# -- one workload ------------------------------------------------------------------------------------------------


def make_engines(model: Model, workload: Workload, compiled: bool) -> tuple[dict[str, TorchEngine], float]:
    """Engines sized for the workload, warmed up; and the seconds that torch.compile took."""
    torch.compiler.reset()
    slots, length = workload.batch, workload.max_length
    engines = {"eager": TorchEngine(model, slots=slots, max_length=length)}
    compile_s = 0.0
    if compiled:
        engines["compiled"] = TorchEngine(model, slots=slots, max_length=length, compile=True)
        started = time.perf_counter()
        generate(engines["compiled"], [Request(0, 0, workload.prompts[0], max_tokens=2)])
        compile_s = time.perf_counter() - started
    return engines, compile_s


def measure(
    model: Model,
    workload: Workload,
    engines: dict[str, TorchEngine],
    ctranslate2: CTranslate2 | None,
    rounds: int,
    synchronize: Callable[[], None],
) -> dict[str, list[float]]:
    """Tokens/s of every side, interleaved, after one warm-up each."""
    cases = {f"ours {name}": our_case(engine, workload) for name, engine in engines.items()}
    cases |= {
        f"generate {attention}": peer_case(model, workload, attention) for attention in ("sdpa", "eager")
    }
    for name, case in cases.items():
        if case() != workload.num_tokens * workload.repeats:
            raise SystemExit(f"{name} made another number of tokens than asked for on {workload.name}")
    if ctranslate2 is None:
        return interleave(cases, rounds, synchronize)
    ctranslate2.rate(workload)
    rates: dict[str, list[float]] = {name: [] for name in [*cases, "ctranslate2"]}
    for _ in range(rounds):
        for name, (rate,) in interleave(cases, 1, synchronize).items():
            rates[name].append(rate)
        rates["ctranslate2"].append(ctranslate2.rate(workload))
    return rates


def check_greedy(
    model: Model, workload: Workload, engines: dict[str, TorchEngine], ctranslate2: CTranslate2 | None
) -> dict[str, bool]:
    """Whether every side gives `generate`'s greedy tokens on a few prompts."""
    prompts, lengths = workload.prompts[:4], np.full(4, 24)
    few = Workload("greedy", 4, prompts, lengths)
    model.module.set_attn_implementation("eager")
    expected = peer_batch(model, prompts, lengths, greedy=True).tolist()
    same = {
        f"ours {name}": [s.token_ids.tolist() for s in generate(engine, our_requests(few, 0, temperature=0))]
        == expected
        for name, engine in engines.items()
    }
    if ctranslate2 is not None:
        answer = ctranslate2.ask(prompts, 24, greedy=True, return_tokens=True)
        same["ctranslate2"] = answer["tokens"] == expected
    return same


def run_workload(
    model: Model, workload: Workload, ctranslate2: CTranslate2 | None, options: argparse.Namespace
) -> dict[str, Any]:
    """Measures one workload and prints its table."""
    synchronize = torch.cuda.synchronize if model.device.type == "cuda" else _nothing
    engines, compile_s = make_engines(model, workload, not options.no_compile)
    equal = check_greedy(model, workload, engines, ctranslate2)
    if not all(equal.values()):
        raise SystemExit(f"Greedy completions differ from those of generate: {equal}")
    rates = measure(model, workload, engines, ctranslate2, options.rounds, synchronize)
    context = PROMPT_TOKENS + float(
        (workload.lengths * (workload.lengths + 1) / 2).sum() / workload.num_tokens
    )
    floor = measure_floor(model, workload.batch, context, synchronize)
    middle = {name: statistics.median(values) for name, values in rates.items()}
    ours = max((name for name in middle if name.startswith("ours")), key=lambda name: middle[name])
    peer = max((name for name in middle if name.startswith("generate")), key=lambda name: middle[name])
    ratio, interval = ratios(rates[ours], rates[peer])
    shares = {name: floor.step_s / workload.batch * middle[name] for name in middle}
    rows = [
        [name, middle[name], min(values), max(values), middle[name] / middle[peer], shares[name]]
        for name, values in rates.items()
    ]
    title = (
        f"{workload.name}: {len(workload.prompts)} requests, {workload.num_tokens:,} tokens, "
        f"{options.rounds} rounds (compile {compile_s:.1f} s)"
    )
    print_table(title, ["", "tokens/s", "min", "max", "÷ generate", "floor share"], rows)
    print(
        f"floor of a step: products {1e3 * floor.flop_s:.2f} ms ({floor.gflops:.0f} GFLOP/s), "
        f"bytes {1e3 * floor.byte_s:.2f} ms ({floor.gbytes_per_s:.1f} GB/s) "
        f"-> {workload.batch / floor.step_s:,.0f} tokens/s; greedy tokens equal: {', '.join(equal)}",
        flush=True,
    )
    return {
        "tokens_per_s": middle | {"ctranslate2": middle.get("ctranslate2")},
        "best_ours": ours,
        "best_generate": peer,
        "ratio": ratio,
        "interval": interval,
        "compile_s": compile_s,
        "floor_tokens_per_s": workload.batch / floor.step_s,
        "floor_share": shares[ours],
        "greedy_equal": equal,
    }


def _nothing() -> None:
    pass


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="B=64 only, 3 rounds")
    parser.add_argument("--recipe", default="embedded", help="whose embedded architecture")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, help="default 5 (quick: 3)")
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args()
    options.rounds = options.rounds or (3 if options.quick else 5)
    return options


def workloads(quick: bool, vocab: int) -> list[Workload]:
    """The first one gives the headline."""
    if quick:
        return [equal_lengths(64, vocab, 1), rl_like(64, vocab, 256)]
    return [
        equal_lengths(64, vocab, 2),
        equal_lengths(256, vocab, 1),
        rl_like(64, vocab, 256),
        rl_like(256, vocab, 1024),
    ]


def main() -> None:
    """Runs all workloads and prints the result."""
    options = parse()
    torch.set_num_threads(options.threads)
    with quiet_transformers(), tempfile.TemporaryDirectory(prefix="postgrad-bench-") as folder:
        model = build_model(options.recipe, options.device)
        ctranslate2 = CTranslate2.start(model, Path(folder) / "model", options.threads)
        print(f"{model.num_parameters:,} parameters, {model.device}, {options.threads} threads", flush=True)
        results: dict[str, dict[str, Any]] = {}
        try:
            for workload in workloads(options.quick, len(model.tokenizer)):
                results[workload.name] = run_workload(model, workload, ctranslate2, options)
        finally:
            if ctranslate2 is not None:
                ctranslate2.close()
    main_name, main_result = next(iter(results.items()))
    rates = main_result["tokens_per_s"]
    finish(
        "generation",
        rates[main_result["best_ours"]],
        rates[main_result["best_generate"]],
        "tokens/s",
        main_result["ratio"],
        main_result["interval"],
        peer_name="transformers generate",
        workload=main_name,
        num_parameters=model.num_parameters,
        device=str(model.device),
        ctranslate2_version=ctranslate2.version if ctranslate2 is not None else None,
        workloads=results,
        **machine(options.threads),
    )


if __name__ == "__main__":
    sys.exit(main())
