"""The exact equality test: an offloaded answer is the local answer, to the last bit of its log-probabilities.

It holds between runs that use the same kernels on the same numbers (docs/equality.md):
- Both engines prefill in chunks of one size.
- A plain local run computes the last prompt token in the kernels of its prefill, an offloaded one in those of decode. So
  the local run gets the prompt less its last token, and that token is the local run's own first one.
- Nothing else is in the batch.
"""

from __future__ import annotations

import random
import subprocess
from dataclasses import dataclass
from typing import Any, Protocol

from prfaas.testing.site import Answer, VllmDeployed

NUM_TOKENS = 9
#: One layer's linear state in the tiny Qwen3-Next: three columns of a convolution in bf16, then four heads in float32.
CONVOLUTION_BYTES = 3 * 512 * 2
STATE_BYTES = CONVOLUTION_BYTES + 4 * 64 * 64 * 4


@dataclass(frozen=True, slots=True)
class Case:
    """A prompt with its local answer. `expected` excludes the first token, which became the prompt's last."""

    prompt: list[int]
    expected: Answer


class Decodes(Protocol):
    """A deployment with a decode engine at the URL `decode`."""

    @property
    def decode(self) -> str: ...

    def ask(self, prompt: list[int], max_tokens: int, url: str | None = None, **extra: Any) -> Answer: ...


def make_case(site: Decodes, length: int, rng: random.Random, url: str | None = None, **extra: Any) -> Case:
    """A random prompt of `length` tokens and its local answer, from the decode engine unless `url` is another's."""
    prompt = [rng.randrange(256) for _ in range(length - 1)]
    local = site.ask(prompt, NUM_TOKENS, url=url or site.decode, **extra)
    return Case([*prompt, local.tokens[0]], local.after(1))


def offload(site: Decodes, case: Case, **extra: Any) -> Answer:
    """The same prompt through the gateway."""
    return site.ask(case.prompt, NUM_TOKENS - 1, **extra)


def plain_local(site: Decodes, case: Case, url: str | None = None) -> Answer:
    """The decode engine's own answer to the whole prompt, or another's: what a fallback must equal."""
    return site.ask(case.prompt, NUM_TOKENS - 1, url=url or site.decode)


def same_bits(one: Answer, other: Answer) -> bool:
    """Tokens and log-probabilities are equal; only the request's id may differ."""
    return (one.tokens, one.logprobs) == (other.tokens, other.logprobs)


def distance(case: Case, answer: Answer) -> float:
    """Largest |Δlogprob|; infinite if any token differs."""
    if case.expected.tokens != answer.tokens:
        return float("inf")
    return max(abs(a - b) for a, b in zip(case.expected.logprobs, answer.logprobs, strict=True))


def worker_of(site: VllmDeployed, name: str) -> int:
    """Pid of the process of an engine that computes."""
    leader = site.supervisor.processes[name].pid
    listing = subprocess.run(["ps", "-eo", "pid,pgid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listing.splitlines()[1:]]
    in_group = [(int(pid), args) for pid, group, args in rows if int(group) == leader]
    return next((pid for pid, args in in_group if "Worker" in args), in_group[-1][0])
