"""A whole deployment in one event loop: fake engines and nodes on real sockets, and the real gateway in front."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from prfaas.core.model.layout import KVGroupKind
from prfaas.deployment.model import Deployment
from prfaas.gateway.app import GatewayApp
from prfaas.gateway.server import Server, front, running
from prfaas.gateway.service import Service, build_service
from prfaas.scenario.served_policy import ServedPolicy
from prfaas.testing.fake_engine import FakeEngine
from prfaas.testing.fake_kvnode import FakeKVNode

MODEL = "tiny"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
#: One token per character.
TOKEN_IDS = {chr(code): code - 31 for code in range(32, 127)} | {"\n": 96}


def write_tiny_model(model_dir: Path, *, chat_template: str | None = CHAT_TEMPLATE) -> None:
    """A model directory for the gateway: one token per character of printable ASCII, and a chat template."""
    tokenizer = Tokenizer(models.WordLevel(vocab={**TOKEN_IDS, "<unk>": 0}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.save(str(model_dir / "tokenizer.json"))
    config: dict[str, Any] = {"unk_token": "<unk>"}
    if chat_template is not None:
        config["chat_template"] = chat_template
    (model_dir / "tokenizer_config.json").write_text(json.dumps(config))
    (model_dir / "config.json").write_text("{}")


def tiny_tokens(body: dict[str, Any]) -> list[int]:
    """Token ids of a request's body, as an engine with the tiny model makes them."""
    prompt = body.get("prompt")
    if prompt is None:
        turns = [f"<|{message['role']}|>{message['content']}\n" for message in body["messages"]]
        prompt = "".join([*turns, "<|assistant|>"])
    if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
        (prompt,) = prompt
    return prompt if isinstance(prompt, list) else [TOKEN_IDS.get(character, 0) for character in prompt]


@dataclass
class Rig:
    """The running deployment. `decoders[i]` is beside `decode_nodes[i]`."""

    service: Service
    app: GatewayApp
    decoders: list[FakeEngine]
    decode_nodes: list[FakeKVNode]
    prefillers: list[FakeEngine]
    prefill_nodes: list[FakeKVNode]
    url: str
    session: aiohttp.ClientSession
    #: Set `should_exit` to stop it as SIGTERM does; `serving` is done when it has stopped.
    server: Server
    serving: asyncio.Task[None]

    @property
    def num_live_landings(self) -> int:
        """Landings that hold space on any decode node."""
        return sum(len(node.live_landings) for node in self.decode_nodes)

    async def complete(self, **body: Any) -> tuple[aiohttp.ClientResponse, Any]:
        """POST /v1/completions; the response and its JSON."""
        async with self.session.post(f"{self.url}/v1/completions", json={"model": MODEL, **body}) as reply:
            return reply, await reply.json()

    async def stream(self, **body: Any) -> tuple[aiohttp.ClientResponse, bytes]:
        """POST a streamed completion; the response and all its bytes."""
        content = {"model": MODEL, "stream": True, **body}
        async with self.session.post(f"{self.url}/v1/completions", json=content) as reply:
            return reply, await reply.read()

    async def story(self, reply: aiohttp.ClientResponse) -> dict[str, Any]:
        """The story of an answered request."""
        async with self.session.get(f"{self.url}/prfaas/requests/{reply.headers['x-request-id']}") as answer:
            story: dict[str, Any] = await answer.json()
            return story

    async def metric(self, line: str) -> float:
        """The value of one sample by name and labels as Prometheus prints them; 0 if it is not there."""
        async with self.session.get(f"{self.url}/metrics") as reply:
            text = await reply.text()
        return next((float(row.rsplit(" ", 1)[1]) for row in text.splitlines() if row.startswith(line + " ")), 0.0)


async def until(condition: Callable[[], bool], deadline_s: float = 5.0) -> None:
    """Poll until `condition`; AssertionError at the deadline."""
    loop = asyncio.get_running_loop()
    end_s = loop.time() + deadline_s
    while not condition():
        assert loop.time() < end_s, "condition not met in time"
        await asyncio.sleep(0.005)


@asynccontextmanager
async def gateway_rig(
    model_dir: Path,
    *,
    num_decoders: int = 1,
    num_prefillers: int = 1,
    threshold_tokens: int = 8,
    gateway: dict[str, Any] | None = None,
    transfer: dict[str, Any] | None = None,
    policy: str = "fixed",
    served: ServedPolicy | None = None,
    max_model_tokens: int = 4096,
    kv_group_kinds: tuple[KVGroupKind, ...] = (KVGroupKind.FULL_ATTENTION,),
) -> AsyncIterator[Rig]:
    """Start everything; `model_dir` comes from `write_tiny_model`. `served` takes the place of what `policy` comes
    to."""
    async with AsyncExitStack() as stack:
        made = [FakeKVNode(f"pd-{i}", kv_group_kinds=kv_group_kinds) for i in range(num_decoders)]
        decode_nodes = [await stack.enter_async_context(node) for node in made]
        by_name = {node.name: node for node in decode_nodes}
        prefill_nodes = [FakeKVNode(f"prfaas-{i}", peers=by_name) for i in range(num_prefillers)]
        for node in prefill_nodes:
            await stack.enter_async_context(node)
        decoders = [
            await stack.enter_async_context(FakeEngine(node=node, tokenize=tiny_tokens)) for node in decode_nodes
        ]
        prefillers = [await stack.enter_async_context(FakeEngine(nodes=by_name)) for _ in prefill_nodes]
        clusters = {
            "pd": {"role": "pd", "endpoints": _endpoints(decoders, decode_nodes)},
            "prfaas": {"role": "prfaas", "endpoints": _endpoints(prefillers, prefill_nodes)},
        }
        deployment = Deployment.model_validate(
            {
                "model": {"name": MODEL, "path": str(model_dir), "max_model_tokens": max_model_tokens},
                "clusters": clusters,
                "links": [{"from": "prfaas", "to": "pd"}],
                "policy": {"kind": policy, "routing_threshold_tokens": threshold_tokens},
                "gateway": {"stop_grace": "1s", **(gateway or {})},
                "transfer": transfer or {},
            }
        )
        service = build_service(deployment, model_dir, served)
        app = await stack.enter_async_context(running(service, probe_interval_s=0.05))
        config = await stack.enter_async_context(front(app, deployment.gateway))
        server = Server(config, app, deployment.gateway.stop_notice)
        url, serving = await stack.enter_async_context(_served(server))
        client = aiohttp.ClientSession(headers={"content-type": "application/json"})
        session = await stack.enter_async_context(client)
        # The gateway waits a moment only for first answers; on a busy machine a scenario would find it half blind.
        await until(lambda: all(i.engine_healthy and i.node_ready for i in service.fleet.all), 60.0)
        yield Rig(service, app, decoders, decode_nodes, prefillers, prefill_nodes, url, session, server, serving)


def _endpoints(engines: list[FakeEngine], nodes: list[FakeKVNode]) -> list[dict[str, str]]:
    pairs = zip(engines, nodes, strict=True)
    return [{"engine": engine.url, "kvnode": node.url, "lanes": f"{node.name}:1"} for engine, node in pairs]


@asynccontextmanager
async def _served(server: Server) -> AsyncIterator[tuple[str, asyncio.Task[None]]]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    serving = asyncio.create_task(server.serve([listener]))
    await until(lambda: server.started or serving.done())
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", serving
    finally:
        server.should_exit = True
        await serving
