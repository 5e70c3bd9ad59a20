"""One client's long prompt does not stop everybody else's streams, probes and answers."""

from __future__ import annotations

import asyncio
import io
import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from prfaas.testing.gateway_rig import MODEL, Rig, gateway_rig, write_tiny_model

#: One word of 2 MiB, for which the tokenizer below takes seconds.
LONG_WORD = "a" * (2 << 20) + "b" * 10_000
MAX_MODEL_TOKENS = 40_000
ATTEMPTS = 3


def write_slow_model(model_dir: Path) -> None:
    """A byte-level BPE that joins up to 64 `a` to one token, step by step, and does not split words before."""
    write_tiny_model(model_dir)
    vocab = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [("a" * length, "a" * length) for length in (1, 2, 4, 8, 16, 32)]
    vocab |= {left + right: len(vocab) + index for index, (left, right) in enumerate(merges)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.save(str(model_dir / "tokenizer.json"))


async def longest_silence(rig: Rig, path: str, body: dict[str, Any]) -> float:
    """The share of one refused request's time in which `/live` gave no answer at a stretch."""
    answers_s = [time.perf_counter()]
    raw = io.BytesIO(json.dumps({"model": MODEL, **body}).encode())
    asking = asyncio.create_task(rig.session.post(f"{rig.url}{path}", data=raw))
    while not asking.done():
        async with rig.session.get(f"{rig.url}/live") as live:
            assert live.status == 200
        answers_s.append(time.perf_counter())
    reply = await asking
    assert (reply.status, (await reply.json())["error"]["code"]) == (400, "context_length_exceeded")
    silences_s = [after - before for before, after in pairwise(answers_s)]
    return max(silences_s) / (answers_s[-1] - answers_s[0])


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_the_gateway_answers_while_it_tokenizes_a_long_prompt(tmp_path: Path, endpoint: str) -> None:
    """Were the interpreter's lock held, one silence would be nearly all of the request. A busy machine may be silent for
    long too, but not every time."""
    write_slow_model(tmp_path)
    chat = {"messages": [{"role": "user", "content": LONG_WORD}]}
    path, body = ("/v1/chat/completions", chat) if endpoint == "chat" else ("/v1/completions", {"prompt": LONG_WORD})

    async def main() -> list[float]:
        async with asyncio.timeout(300), gateway_rig(tmp_path, max_model_tokens=MAX_MODEL_TOKENS) as rig:
            shares = []
            while len(shares) < ATTEMPTS and (not shares or shares[-1] >= 0.5):
                shares.append(await longest_silence(rig, path, body))
            return shares

    shares = asyncio.run(main())
    assert shares[-1] < 0.5, f"longest silences as shares of the requests: {shares}"
