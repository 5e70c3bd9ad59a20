"""What vLLM registers, and what `layout_of_config` makes of the same model's config.json."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from pathlib import Path

import pytest

from prfaas.core.model.layout import KVLayout
from prfaas.core.model.layout_of_config import layout_of_config
from prfaas.demo.tiny_models import make_model
from prfaas.engines.kinds import dialect_of, launch_of
from prfaas.engines.launch import EngineStart
from prfaas.kvnode.engine_path import EnginePath
from prfaas.kvnode.engine_socket import serve_engines
from prfaas.launch.plan import ProcessSpec
from prfaas.launch.supervisor import Supervisor
from prfaas.testing.node_pair import node_pair
from prfaas.testing.site import ENGINE_ARGS, free_ports

pytestmark = pytest.mark.vllm

MAX_MODEL_TOKENS = 2048


def registered(model_dir: Path, directory: Path) -> KVLayout:
    """The layout that a real engine for the model registers with its node."""
    (port,) = free_ports(1)
    socket_path = str(directory / "s")
    args = (*ENGINE_ARGS, "--enforce-eager", "--max-num-seqs", "1")
    start = EngineStart(
        "x", "x.yaml", str(model_dir), "tiny", MAX_MODEL_TOKENS, "127.0.0.1", port, socket_path, args, {}
    )
    launch, health = launch_of("vllm"), f"http://127.0.0.1:{port}{dialect_of('vllm').health_path}"
    engine = ProcessSpec("engine", launch.argv([start], sys.executable), launch.env(start), health)

    async def main() -> KVLayout:
        with (
            node_pair(directory, kind="inproc") as pair,
            contextlib.closing(EnginePath(socket_path)) as path,
            Supervisor(directory / "logs") as supervisor,
        ):
            pair.sink.detach("engine", is_worker=True)
            engines = await serve_engines(pair.sink, path.listener)
            supervisor.start([engine])
            while True:
                found = [engine.layout for engine in pair.sink.engines.values() if engine.layout is not None]
                if found:
                    engines.close()
                    return found[0]
                ended = supervisor.newly_ended()
                assert not ended, (directory / "logs" / "engine.log").read_text(errors="replace")[-4000:]
                await asyncio.sleep(0.1)

    return asyncio.run(main())


def by_layer(layout: KVLayout) -> dict[int, tuple[object, ...]]:
    """What each layer keeps. vLLM cuts layers of one kind into several groups, which changes no image."""
    return {
        layer: (group.kind, group.page_tokens, group.page_bytes, group.state_bytes, group.window_tokens)
        for group in layout.groups
        for layer in group.layers
    }


@pytest.mark.parametrize("kind", ["qwen3-next", "gemma3"])
def test_a_config_gives_the_layout_that_the_engine_registers(kind: str, models: Path, tmp_path: Path) -> None:
    """Every layer has the same kind and bytes, and images of every length lie alike; block and page are the engine's."""
    model_dir = make_model(kind, models)
    real = registered(model_dir, tmp_path)
    (page_tokens,) = {group.page_tokens for group in real.groups if group.page_tokens}
    computed = layout_of_config(
        json.loads((model_dir / "config.json").read_text(encoding="utf-8")),
        block_tokens=real.block_tokens,
        page_tokens=page_tokens,
        max_model_tokens=MAX_MODEL_TOKENS,
    )
    assert by_layer(computed) == by_layer(real)
    assert set(computed.group_kinds) == set(real.group_kinds)
    for num_tokens in range(2, MAX_MODEL_TOKENS, 97):
        for skip in range(0, num_tokens, real.align_tokens):
            regions = [
                [(r.layer, r.start, r.end, r.first_token, r.end_token) for r in layout.image(num_tokens, skip).regions]
                for layout in (computed, real)
            ]
            assert regions[0] == regions[1]
