"""Who may load a landing, on a real node: reserved over HTTP, filled over lanes, claimed over the engine's socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from prfaas.core.errors import Refused
from prfaas.engines.node_client import NodeClient
from prfaas.kvnode.engine_path import EnginePath
from prfaas.kvnode.engine_socket import serve_engines
from prfaas.kvnode.http import Changes, Control
from prfaas.kvnode.metrics import NodeMetrics
from prfaas.testing.node_pair import NodePair, node_pair

ASKED = {
    "transfer_id": "a", "num_prompt_tokens": 100, "skip_tokens": 0, "lease_s": 30.0, "token_digest": "d" * 64,
    "claim_secret": "s" * 32,
}  # fmt: skip
CLAIM = {name: ASKED[name] for name in ("transfer_id", "num_prompt_tokens", "token_digest", "claim_secret")}

Scenario = Callable[[NodePair, TestClient[Any, Any], NodeClient], Awaitable[None]]


def drive(directory: Path, scenario: Scenario) -> None:
    """Run it against the receiving node's HTTP control and an engine's connection to its socket."""

    async def main() -> None:
        changes = Changes(asyncio.get_running_loop())
        with (
            node_pair(directory, kind="inproc", on_change=changes.notify) as pair,
            contextlib.closing(EnginePath(str(directory / "node.sock"))) as engine_path,
        ):
            await serve(pair, changes, engine_path)

    async def serve(pair: NodePair, changes: Changes, engine_path: EnginePath) -> None:
        control = Control(pair.sink, changes, NodeMetrics(pair.sink))
        engines = await serve_engines(pair.sink, engine_path.listener)
        engine = NodeClient(engine_path.path, {"engine_id": "e", "boot_id": "b", "layout": None}, 30.0)
        async with asyncio.timeout(60), TestClient(TestServer(control.application())) as http:
            await scenario(pair, http, engine)
            await asyncio.to_thread(engine.close)
        engines.close()

    asyncio.run(main())


def ship(pair: NodePair, reservation: dict[str, object]) -> None:
    """What the prefill engine does, until the landing is whole."""
    memory = pair.stage_open("a", reservation)
    memory[:] = b"k" * len(memory)
    pair.source.staged("a", [(0, len(memory))])
    pair.source.stage_close("a")
    pair.wait_state("a", "landed")


@pytest.mark.parametrize(
    "wrong",
    [
        {"transfer_id": "b"},
        {"claim_secret": "a guess that is long enough"},
        {"claim_secret": ""},
        {"token_digest": "e" * 64},
        {"num_prompt_tokens": 99},
    ],
    ids=str,
)
def test_a_landing_is_loaded_only_with_its_secret_and_prompt(tmp_path: Path, wrong: dict[str, Any]) -> None:
    """Whatever is wrong, the answer is one and the landing stays for its own request."""

    async def scenario(pair: NodePair, http: TestClient[Any, Any], engine: NodeClient) -> None:
        reservation = await (await http.post("/v1/landings", json=ASKED)).json()
        assert "claim_secret" not in reservation
        await asyncio.to_thread(ship, pair, reservation)
        with pytest.raises(Refused) as refused:
            await asyncio.to_thread(engine.call, "claim", **{**CLAIM, **wrong})
        assert refused.value.code == "unknown_landing"
        assert refused.value.message == "no landing here has that transfer id, claim secret and prompt"
        guess = {"transfer_id": "a", "claim_secret": "not the secret", "reason": "x", "recomputed": 1}
        await asyncio.to_thread(engine.call, "declined", **guess)
        record = await (await http.get("/v1/landings/a")).json()
        assert record["state"] == "landed"
        assert ASKED["claim_secret"] not in str(record)
        await asyncio.to_thread(engine.call, "claim", **CLAIM)
        reply = await asyncio.to_thread(engine.call, "consumed", transfer_id="a", loaded=99, recomputed=1)
        assert reply == {"valid": True}

    drive(tmp_path, scenario)


@pytest.mark.parametrize("field", ["token_digest", "claim_secret"])
def test_a_reservation_needs_a_digest_and_a_secret(tmp_path: Path, field: str) -> None:
    """Without them, whoever knew its id could load it. The answer names what is missing or too short to be a secret."""

    async def scenario(pair: NodePair, http: TestClient[Any, Any], engine: NodeClient) -> None:
        for body in ({k: v for k, v in ASKED.items() if k != field}, {**ASKED, "claim_secret": "short"}):
            reply = await http.post("/v1/landings", json=body)
            assert reply.status == 400
            error = (await reply.json())["error"]
            assert error["code"] == "bad_request"
            assert (field if field not in body else "claim_secret") in error["message"]

    drive(tmp_path, scenario)
