"""CTranslate2 as a child process: converts a Hugging Face directory, then generates on request.

Started by `benchmarks/generation.py` with the interpreter of .venv-trl. One JSON object a line on stdin, one on stdout:

    {"prompts": [[ids], …], "num_tokens": 64, "batch_size": 64, "greedy": false}
    → {"seconds": 0.31, "num_tokens": 4096, "tokens": [[ids], …]}     (`tokens` with "return_tokens": true)

The clock runs around `generate_batch` alone, so the pipe costs nothing. Every completion has exactly `num_tokens`
tokens: `min_length` = `max_length` forbids the stop token.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ctranslate2
from transformers import AutoTokenizer


def main() -> None:
    """Converts, says ready, serves until stdin closes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "model"
        ctranslate2.converters.TransformersConverter(str(options.model)).convert(str(target))
        generator = ctranslate2.Generator(
            str(target), device="cpu", compute_type="float32", inter_threads=1, intra_threads=options.threads
        )
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        _answer({"ready": True, "version": ctranslate2.__version__})
        for line in sys.stdin:
            _answer(generate(generator, tokenizer, json.loads(line)))


def generate(generator: ctranslate2.Generator, tokenizer: Any, request: dict[str, Any]) -> dict[str, Any]:
    """One timed call."""
    prompts = [tokenizer.convert_ids_to_tokens(ids) for ids in request["prompts"]]
    started = time.perf_counter()
    results = generator.generate_batch(
        prompts,
        max_batch_size=request["batch_size"],
        beam_size=1,
        sampling_topk=1 if request["greedy"] else 0,
        sampling_temperature=1.0,
        min_length=request["num_tokens"],
        max_length=request["num_tokens"],
        include_prompt_in_result=False,
        return_scores=True,
    )
    seconds = time.perf_counter() - started
    tokens = [result.sequences_ids[0] for result in results]
    answer: dict[str, Any] = {"seconds": seconds, "num_tokens": sum(len(ids) for ids in tokens)}
    if request.get("return_tokens"):
        answer["tokens"] = tokens
    return answer


def _answer(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
