"""The same prompts, answered by real engines in all the ways that are compared."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from prfaas.demo.tiny_models import VOCAB_TOKENS
from prfaas.testing.site import Answer, Site

#: Both engines' chunks, and the larger ones that a local run is compared in.
CHUNK_TOKENS = 512
OTHER_CHUNK_TOKENS = 2048
#: Shorter and longer than a chunk, on borders of blocks and chunks, one token behind, and anywhere.
PROMPT_TOKENS = (300, 512, 513, 700, 1025, 1300, 1537, 1900)
ANSWER_TOKENS = 12
NUM_AT_ONCE = 8
SEED = 20_261_125


@dataclass(frozen=True, slots=True)
class Runs:
    """One answer per prompt in every list. `*_expected` is what the list of that name must or may be equal to, where
    it is not `local`, the decode engine's answers one by one."""

    prompts: list[list[int]] = field(default_factory=list)
    local: list[Answer] = field(default_factory=list)
    again: list[Answer] = field(default_factory=list)
    offloaded: list[Answer] = field(default_factory=list)
    exact: list[Answer] = field(default_factory=list)
    exact_expected: list[Answer] = field(default_factory=list)
    resumed: list[Answer] = field(default_factory=list)
    resumed_expected: list[Answer] = field(default_factory=list)
    together: list[Answer] = field(default_factory=list)
    other_chunks: list[Answer] = field(default_factory=list)
    mixed: list[Answer] = field(default_factory=list)
    mixed_expected: list[Answer] = field(default_factory=list)


def collect(kind: str, models: Path, prompts_per_length: int) -> Runs:
    """Starts two pairs of engines one after the other; minutes."""
    rng = random.Random(SEED)
    lengths = PROMPT_TOKENS * prompts_per_length
    runs = Runs([[rng.randrange(256) for _ in range(length)] for length in lengths])
    with Site(kind, models=models, chunk_tokens=CHUNK_TOKENS) as site:
        for prompt in runs.prompts:
            _one_by_one(site, prompt, runs)
        with ThreadPoolExecutor(NUM_AT_ONCE) as pool:
            runs.together.extend(pool.map(lambda prompt: local_answer(site, prompt), runs.prompts))
    with Site(kind, models=models, chunk_tokens=CHUNK_TOKENS, decode_chunk_tokens=OTHER_CHUNK_TOKENS) as site:
        for prompt in runs.prompts:
            runs.other_chunks.append(local_answer(site, prompt))
            _exact_test(site, prompt, runs.mixed, runs.mixed_expected)
    return runs


def _one_by_one(site: Site, prompt: list[int], runs: Runs) -> None:
    local = local_answer(site, prompt)
    runs.local.append(local)
    runs.again.append(local_answer(site, prompt))
    runs.offloaded.append(offloaded_answer(site, prompt))
    _exact_test(site, prompt, runs.exact, runs.exact_expected)
    # vLLM alone does this when it resumes a request that it has preempted, and when a client sends the answer so far.
    runs.resumed_expected.append(local.after(1))
    runs.resumed.append(local_answer(site, [*prompt, local.tokens[0]], ANSWER_TOKENS - 1))


def _exact_test(site: Site, prompt: list[int], found: list[Answer], expected: list[Answer]) -> None:
    """The prompt's last token gives way to the first one of the local answer to the tokens before it."""
    local = local_answer(site, prompt[:-1], ANSWER_TOKENS + 1)
    expected.append(local.after(1))
    found.append(offloaded_answer(site, [*prompt[:-1], local.tokens[0]]))


def local_answer(site: Site, prompt: list[int], num_tokens: int = ANSWER_TOKENS) -> Answer:
    """The decode engine's own."""
    return site.ask(prompt, num_tokens, url=site.decode, logprobs=VOCAB_TOKENS)


def offloaded_answer(site: Site, prompt: list[int]) -> Answer:
    """Through the gateway. Raises RuntimeError if it was not prefilled by the other engine."""
    answer = site.ask(prompt, ANSWER_TOKENS, logprobs=VOCAB_TOKENS)
    story = site.story(answer)
    if (story["route"], story["tokens_loaded"]) != ("remote", len(prompt) - 1):
        raise RuntimeError(f"a prompt of {len(prompt)} tokens was not offloaded: {story}")
    return answer
