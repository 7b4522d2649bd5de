"""What a mask costs: time per token with and without a response format, on an embedded model and on a real one.

Both write a text of the same number of tokens; under the mask it stands in an object. `mask` is the mask alone: reading
the last token and filling the bits. Wanted: `make real` for the real one.
"""

from __future__ import annotations

import argparse
import statistics
from time import perf_counter
from typing import Any

from anchorlm.engine import LocalEngine, runtime
from anchorlm.models import CausalModel
from anchorlm.records import GenerationSettings
from anchorlm.zoo import path
from benchmarks._report import alternate, report

PROMPT = [{"role": "user", "content": "Explain in detail how interest on a savings account works."}]
SCHEMA = {
    "type": "object",
    "properties": {"title": {"type": "string", "maxLength": 20}, "text": {"type": "string", "minLength": 2000}},
    "required": ["title", "text"],
    "additionalProperties": False,
}
FORMAT: dict[str, Any] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}


def settings(tokens: int, format: dict[str, Any] | None) -> GenerationSettings:
    """Sampled, so that a text has no end of its own."""
    return GenerationSettings(max_new_tokens=tokens, do_sample=True, temperature=1.5, response_format=format, seed=3)


async def written(engine: LocalEngine, own: GenerationSettings) -> list[int]:
    """The tokens of one answer."""
    async with engine.open(engine.model.encode(PROMPT), room=own.max_new_tokens) as row:
        return list((await row.generate(own)).token_ids)


def per_token(engine: LocalEngine, tokens: int, runs: int) -> tuple[float, float]:
    """Median milliseconds per token, free and held."""
    free, held = settings(tokens, None), settings(tokens, FORMAT)
    counts = [len(runtime().run(written(engine, own))) for own in (free, held)]
    times = alternate(runs, *(lambda own=own: runtime().run(written(engine, own)) for own in (free, held)))
    return tuple(1e3 * statistics.median(each) / count for each, count in zip(times, counts, strict=True))  # type: ignore[return-value]


def mask_alone(engine: LocalEngine, tokens: int) -> tuple[float, float, float]:
    """Milliseconds to compile the schema the first time, and the median and the largest of the masks of an answer."""
    model, start = engine.model, perf_counter()
    model.grammars.form(FORMAT)
    compiled = 1e3 * (perf_counter() - start)
    ids = runtime().run(written(engine, settings(tokens, FORMAT)))
    form, times = model.grammars.form(FORMAT), list[float]()
    for count in range(len(ids)):
        start = perf_counter()
        form.allowed(ids[:count])
        times.append(1e3 * (perf_counter() - start))
    return compiled, statistics.median(times), max(times)


def main() -> None:
    """Prints the table, and keeps it under build/bench."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--models", nargs="+", default=["a-medicine", "real-finance"])
    given = parser.parse_args()
    rows: list[list[object]] = []
    for name in given.models:
        model = CausalModel.from_pretrained(path(name))
        engine = LocalEngine(model)
        compiled, mask, worst = mask_alone(engine, given.tokens)
        free, held = per_token(engine, given.tokens, given.runs)
        rows.append([name, f"{model.vocabulary.size:,}", free, held, held / free, mask, worst, compiled])
    columns = ("model", "vocabulary", "ms per token, free", "held", "ratio", "ms per mask", "largest", "ms to compile")
    report("formats", columns, rows)


if __name__ == "__main__":
    main()
