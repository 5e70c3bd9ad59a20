"""How long the gateway is silent while it tokenizes one long prompt: `encode`, which holds the interpreter's lock,
against what the gateway calls, measured in one run.

`python -m benchmarks.gateway.tokenize_stall [--json] [--rounds N]`. Gateways and client are separate processes; rounds
alternate between the two. While one prompt is being answered, the client asks for `/live` without a pause; the longest
time without an answer is what every stream of that gateway would have waited. No engine runs: prompts that are too long
end with 400, the others with 503.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import uvloop
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from benchmarks.gateway.front import deployment
from benchmarks.gateway.overhead import _free_port, _up, process
from prfaas.gateway.prompt import tokenize
from prfaas.gateway.server import serve
from prfaas.testing.gateway_rig import write_tiny_model

MAX_MODEL_TOKENS = 131_072
VOCAB_TOKENS = 32_000
#: The split into words of Qwen's tokenizers.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}"
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}\n{% endfor %}"
)
TOOL = {"type": "function", "function": {"name": "f"}}
ROOT = Path(__file__).parents[2]
KIB, MIB = 1 << 10, 1 << 20


class HoldsTheLock:
    """A tokenizer whose `encode_batch_fast` is `encode`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode_batch_fast(self, texts: list[str], add_special_tokens: bool) -> list[Any]:
        """As the gateway did before."""
        return [self._tokenizer.encode(texts[0], add_special_tokens=add_special_tokens)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def write_model(model_dir: Path) -> str:
    """A byte-level BPE of Qwen's shape, trained on this checkout's own text. Returns that text."""
    files = sorted([*ROOT.glob("src/**/*.py"), *ROOT.glob("tests/**/*.py"), *ROOT.glob("docs/**/*.md")])
    text = "".join(file.read_text(encoding="utf-8") for file in files)
    write_tiny_model(model_dir, chat_template=TEMPLATE)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(WORDS), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB_TOKENS, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    tokenizer.save(str(model_dir / "tokenizer.json"))
    return text


def prompts(text: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Name: (path, body)."""
    text = text * (2 * MIB // len(text) + 1)
    user = [{"role": "user", "content": "hi"}]
    num_tools = (8 * MIB - 1 * KIB) // len(json.dumps(TOOL, separators=(",", ":")) + ",")
    return {
        "source text, 512 KiB": ("/v1/completions", {"prompt": text[: 512 * KIB]}),
        "source text, 2 MiB": ("/v1/completions", {"prompt": text[: 2 * MIB]}),
        "one word, 8 MiB": ("/v1/completions", {"prompt": "a" * (8 * MIB - KIB)}),
        "smallest tools, 8 MiB": ("/v1/chat/completions", {"messages": user, "tools": [TOOL] * num_tools}),
    }


async def ask(session: aiohttp.ClientSession, port: int, path: str, body: dict[str, Any]) -> tuple[float, float]:
    """(longest time without an answer of `/live` while the prompt was answered, time of that answer), in seconds."""
    raw = json.dumps({"model": "tiny", **body}, separators=(",", ":")).encode()
    began_s = last_s = time.perf_counter()

    async def post() -> float:
        async with session.post(f"http://127.0.0.1:{port}{path}", data=raw) as reply:
            assert reply.status in (400, 503), await reply.text()
        return time.perf_counter() - began_s

    asking = asyncio.create_task(post())
    longest_s = 0.0
    while not asking.done():
        async with session.get(f"http://127.0.0.1:{port}/live") as live:
            assert live.status == 200
        now_s = time.perf_counter()
        longest_s, last_s = max(longest_s, now_s - last_s), now_s
    return longest_s, await asking


async def _rounds(ports: dict[str, int], bodies: dict[str, tuple[str, dict[str, Any]]], rounds: int) -> dict[str, Any]:
    found: dict[str, dict[str, list[tuple[float, float]]]] = {name: {side: [] for side in ports} for name in bodies}
    async with aiohttp.ClientSession(
        headers={"content-type": "application/json"}, timeout=aiohttp.ClientTimeout(total=None)
    ) as session:
        for port in ports.values():
            await _up(session, f"http://127.0.0.1:{port}/live")
        for _ in range(rounds):
            for name, (path, body) in bodies.items():
                for side, port in ports.items():
                    found[name][side].append(await ask(session, port, path, body))
    return {name: {side: _figures(of) for side, of in sides.items()} for name, sides in found.items()}


def _figures(measured: list[tuple[float, float]]) -> dict[str, float]:
    silences_s, answers_s = zip(*measured, strict=True)
    return {
        "silent_s_median": statistics.median(silences_s),
        "silent_s_worst": max(silences_s),
        "answered_s_median": statistics.median(answers_s),
    }


def run(rounds: int) -> dict[str, Any]:
    """All figures of one run."""
    machine = {"cpus": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()}
    with tempfile.TemporaryDirectory() as model_dir, ExitStack() as stack:
        bodies = prompts(write_model(Path(model_dir)))
        ports = {"encode": _free_port(), "encode_batch_fast": _free_port()}
        for side, port in ports.items():
            stack.enter_context(process("benchmarks.gateway.tokenize_stall", "--serve", str(port), model_dir, side))
        return {"machine": machine, "rounds": rounds, "prompts": uvloop.run(_rounds(ports, bodies, rounds))}


def serve_one(port: int, model_dir: str, side: str) -> None:
    """The process of one gateway."""
    if side == "encode":
        read = tokenize._read_tokenizer
        tokenize._read_tokenizer = lambda path: HoldsTheLock(read(path))  # type: ignore[assignment,return-value]
    described = deployment(port, 1, model_dir, MAX_MODEL_TOKENS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(described, Path(model_dir)))


def _table(figures: dict[str, Any]) -> str:
    lines = [
        "| prompt | tokenized by | silent, median s | silent, worst s | answered, median s |",
        "|---|---|---|---|---|",
    ]
    for name, sides in figures["prompts"].items():
        for side, of in sides.items():
            cells = (f"{of[key]:.3f}" for key in ("silent_s_median", "silent_s_worst", "answered_s_median"))
            lines.append(f"| {name} | `{side}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    if sys.argv[1:2] == ["--serve"]:
        serve_one(int(sys.argv[2]), sys.argv[3], sys.argv[4])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    figures = run(options.rounds)
    print(json.dumps(figures) if options.json else _table(figures))


if __name__ == "__main__":
    main()
