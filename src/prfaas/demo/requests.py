"""What the demo asks, how it reads the answers' stories, and how it proves them."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import secrets
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from prfaas.core.errors import PrfaasError

MAX_TOKENS = 16
#: Stories are complete a moment after the last byte; a missing one is a defect, not a reason to wait long.
STORY_TIMEOUT_S = 10.0
READY_TIMEOUT_S = 30.0


class DemoFailed(PrfaasError):
    """The demo did not show what it must; the text is one clear sentence."""


@contextlib.contextmanager
def telling(what: str) -> Iterator[None]:
    """Turn whatever a client may raise into one sentence that begins with `what`."""
    import openai

    try:
        yield
    except (openai.OpenAIError, OSError, http.client.HTTPException, LookupError, ValueError) as error:
        raise DemoFailed(f"{what} failed: {type(error).__name__}: {error}") from error


@dataclass(frozen=True, slots=True)
class Case:
    """One request: `kind` is chat or completions."""

    title: str
    kind: str
    num_bytes: int
    stream: bool


@dataclass(frozen=True, slots=True)
class Served:
    """A request that was answered: the gateway's story of it, and what the client saw."""

    title: str
    story: dict[str, Any]
    prompt_tokens: int
    completion_tokens: int
    total_s: float

    def problem(self, threshold_tokens: int) -> str | None:
        """What is wrong with how it was served, or None."""
        story = self.story
        route = story.get("route")
        offload = (story.get("uncached_tokens") or 0) > threshold_tokens
        if offload and route != "remote":
            return f"was served {route} ({story.get('fallback_reason') or story.get('reason')}), not remote"
        if offload and (not story.get("kv_bytes_moved") or story.get("tokens_recomputed") != 1):
            moved, again = story.get("kv_bytes_moved"), story.get("tokens_recomputed")
            return f"moved {moved} bytes of KV and recomputed {again} tokens"
        if not offload and route != "local":
            return f"was served {route}, not local"
        return None if self.completion_tokens else "got an empty answer"


CASES = (
    Case("a short question", "chat", 120, False),
    Case("a short question, streamed", "chat", 200, True),
    Case("a short text", "completions", 300, False),
    Case("a long document", "chat", 1200, False),
    Case("a long document, streamed", "chat", 1900, True),
    Case("a long text", "completions", 800, False),
    Case("a long text, streamed", "completions", 1500, True),
)
TOGETHER = tuple(Case(f"one of four at once ({size})", "completions", size, True) for size in (250, 900, 1300, 1750))


class Client:
    """The official OpenAI client, plus the gateway's stories."""

    def __init__(self, base_url: str, model: str) -> None:
        import openai

        self.base_url = base_url
        self.model = model
        self.api = openai.OpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0, timeout=300.0)

    def wait_ready(self) -> None:
        """Until the gateway has seen every engine and node work: it looks once a second. Raises DemoFailed."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        with telling("asking the gateway for its health"):
            while True:
                with urllib.request.urlopen(f"{self.base_url}/health", timeout=5) as response:  # noqa: S310
                    instances = json.loads(response.read())["instances"]
                if all(member["engine"] and member["node"] for member in instances.values()):
                    return
                if time.monotonic() > deadline:
                    raise DemoFailed(f"the gateway does not see every instance work: {json.dumps(instances)}")
                time.sleep(0.2)

    def send(self, case: Case, text: str) -> Served:
        """One request as a user would send it."""
        common: dict[str, Any] = {"model": self.model, "max_tokens": MAX_TOKENS, "temperature": 0.0}
        common["stream"] = case.stream
        common["extra_body"] = {"ignore_eos": True}
        if case.stream:
            common["stream_options"] = {"include_usage": True}
        started_s = time.monotonic()
        if case.kind == "chat":
            messages: Any = [{"role": "user", "content": text}]
            raw: Any = self.api.chat.completions.with_raw_response.create(messages=messages, **common)
        else:
            raw = self.api.completions.with_raw_response.create(prompt=text, **common)
        answer = raw.parse()
        usage = answer.usage if not case.stream else [chunk.usage for chunk in answer if chunk.usage][-1]
        total_s = time.monotonic() - started_s
        story = self.story(raw.headers["x-request-id"])
        return Served(case.title, story, usage.prompt_tokens, usage.completion_tokens, total_s)

    def story(self, request_id: str) -> dict[str, Any]:
        """The gateway's story of a request, complete. Raises TimeoutError."""
        deadline = time.monotonic() + STORY_TIMEOUT_S
        while time.monotonic() < deadline:
            url = f"{self.base_url}/prfaas/requests/{request_id}"
            with urllib.request.urlopen(url, timeout=5) as response:  # noqa: S310  our own gateway
                story: dict[str, Any] = json.loads(response.read())
            if story.get("closed"):
                return story
            time.sleep(0.05)
        raise TimeoutError(f"the story of request {request_id} does not end")

    def tokens(self, prompt: list[int], max_tokens: int, **extra: Any) -> tuple[list[int], list[float], str | None]:
        """Greedy token ids, their log-probabilities, and the request's id."""
        raw = self.api.completions.with_raw_response.create(
            model=self.model,
            prompt=prompt,
            max_tokens=max_tokens,
            temperature=0.0,
            logprobs=1,
            extra_body={"ignore_eos": True, "return_token_ids": True, **extra},
        )
        choice: Any = raw.parse().choices[0]
        return list(choice.token_ids), list(choice.logprobs.token_logprobs), raw.headers.get("x-request-id")


def prompt_of(num_bytes: int, seed: int) -> str:
    """Text of exactly so many bytes, different for every seed from its first byte on."""
    words = random.Random(seed).choices(["prefill", "decode", "cache", "link", "token", "block"], k=num_bytes)
    return f"{seed:x} {' '.join(words)}"[:num_bytes]


def send_all(gateway: Client, console: Console) -> list[Served]:
    """Every case, some of them at once. Raises DemoFailed."""
    total = len(CASES) + len(TOGETHER)
    served: list[Served] = []
    for number, case in enumerate(CASES, start=1):
        served.append(_send(gateway, case))
        console.print(f"  {number}/{total} {case.title}", highlight=False)
    pool = ThreadPoolExecutor(len(TOGETHER))
    try:
        served.extend(pool.map(lambda case: _send(gateway, case), TOGETHER))
    finally:
        # On Ctrl-C nobody waits for answers: they end when the processes are stopped.
        pool.shutdown(wait=False, cancel_futures=True)
    console.print(f"  {total}/{total} the last {len(TOGETHER)} at once", highlight=False)
    return served


def _send(gateway: Client, case: Case) -> Served:
    with telling(f"request {case.title!r}"):
        return gateway.send(case, prompt_of(case.num_bytes, secrets.randbits(32)))


def requests_table(served: list[Served]) -> Table:
    table = Table(title="How each request was served", title_justify="left")
    table.add_column("request")
    for column in ("route", "why"):
        table.add_column(column)
    for column in ("prompt tokens", "KV moved", "recomputed on decode", "TTFT", "total"):
        table.add_column(column, justify="right")
    for item in served:
        story = item.story
        remote = story.get("route") == "remote"
        table.add_row(
            item.title,
            str(story.get("route")),
            str(story.get("fallback_reason") or story.get("reason")).replace("_", " "),
            str(item.prompt_tokens),
            f"{(story.get('kv_bytes_moved') or 0) / 1024:.0f} KiB" if remote else "-",
            str(story.get("tokens_recomputed")) if remote else "-",
            f"{(story.get('ttft_s') or 0) * 1000:.0f} ms",
            f"{item.total_s * 1000:.0f} ms",
            style="cyan" if remote else None,
        )
    return table


def prove(gateway: Client, local: Client, lengths: tuple[int, ...]) -> Iterator[tuple[str, bool]]:
    """(what was compared, whether it is equal) for prompts of these lengths.

    Bits are equal only where both compute in the same pieces with the same kernels (docs/equality.md). Both engines
    have one chunk size here. A plain local run computes the last prompt token in its prefill kernels, an offloaded one
    in the decode kernels. So the local run is given the prompt less its last token, and that token is the local run's
    own first one.
    """
    for length in lengths:
        prompt = random.Random(length).choices(range(256), k=length - 1)
        with telling(f"the proof at {length} tokens"):
            tokens, logprobs, _ = local.tokens(prompt, 13)
            # The salt keeps the decode engine's prefix cache out of it: everything must come over the wire.
            got, got_logprobs, request_id = gateway.tokens([*prompt, tokens[0]], 12, cache_salt=secrets.token_hex(8))
            story = gateway.story(str(request_id))
        distance = max(abs(a - b) for a, b in zip(logprobs[1:], got_logprobs, strict=True))
        equal = got == tokens[1:] and distance == 0.0
        moved = story.get("route") == "remote" and story.get("tokens_loaded") == length - 1
        verdict = "equal" if equal and moved else "DIFFERENT" if not equal else "not moved"
        yield (
            f"{length} tokens: {length - 1} loaded over TCP, 12 tokens {verdict}, max |Δlogprob| = {distance:g}",
            equal and moved,
        )


def as_clients_send_them(gateway: Client, local: Client, lengths: tuple[int, ...]) -> str:
    """How far offloaded answers are from local ones without the care that `prove` takes, in one sentence. No proof."""
    num_equal, gaps = 0, [0.0]
    for length in lengths:
        prompt = random.Random(-length).choices(range(256), k=length)
        with telling(f"comparing at {length} tokens"):
            tokens, logprobs, _ = local.tokens(prompt, 12)
            got, got_logprobs, _ = gateway.tokens(prompt, 12, cache_salt=secrets.token_hex(8))
        num_equal += got == tokens
        if got[0] == tokens[0]:
            gaps.append(abs(got_logprobs[0] - logprobs[0]))
    return (
        f"as clients send prompts, their last token is rounded by other kernels: {num_equal} of {len(lengths)} answers "
        f"equal, first token's |Δlogprob| up to {max(gaps):.2g}; why is in docs/equality.md"
    )
