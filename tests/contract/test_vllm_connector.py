"""Both halves of the connector against both kinds of node, without an engine: vLLM's objects are stood in for, the bytes
that one half ships are those that the other loads."""

from __future__ import annotations

import importlib.util
import warnings
from types import SimpleNamespace
from typing import Any

import pytest

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed; `make setup` installs it", allow_module_level=True)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch's own, while it is imported
    import torch

    from prfaas.engines.vllm.metadata import StepMetadata
    from prfaas.engines.vllm.pages import LayerPages
    from prfaas.engines.vllm.scheduler_side import SchedulerSide
    from prfaas.engines.vllm.worker_side import WorkerSide

from prfaas.core.cache.hashing import pack_tokens, token_digest
from prfaas.core.wire.params import VERSION, DecodeParams, PrefillParams, decode_leg, prefill_leg, read_report
from prfaas.testing.node_pair import wait_until
from tests.contract.nodes import LAYOUT, SECRET, Nodes, engine

PROMPT = list(range(100))
NUM_BLOCKS = 30
TABLE = list(range(1, 26))


class FakeRequest:
    """As much of vLLM's Request as is used."""

    def __init__(self, params: dict[str, Any]) -> None:
        self.request_id = "r"
        self.kv_transfer_params = params
        self.prompt_token_ids = list(PROMPT)
        self._all_token_ids = list(PROMPT)
        self.num_prompt_tokens = len(PROMPT)
        self.max_tokens = 16

    def get_skip_reading_prefix_cache(self) -> bool:
        return False


class Half:
    """Scheduler and worker of one engine over a cache of its own, connected to one node."""

    def __init__(self, socket_path: str, name: str) -> None:
        self.cache = torch.zeros((NUM_BLOCKS * 4, 1, 1, 32), dtype=torch.bfloat16)
        self.scheduler = SchedulerSide(engine(socket_path, name, None), has_linear_state=False)
        pages = {0: LayerPages("l0", self.cache, LAYOUT.groups[0], NUM_BLOCKS)}
        self.worker = WorkerSide(engine(socket_path, name), LAYOUT, pages, {"l0": 0})

    def close(self) -> None:
        self.worker.close()
        self.scheduler.close()


def one_step(num_tokens: int) -> Any:
    """vLLM's SchedulerOutput of a step that computes the whole prompt."""
    cached = SimpleNamespace(req_ids=[], num_computed_tokens=[])
    new = SimpleNamespace(req_id="r", num_computed_tokens=0)
    state = SimpleNamespace(get_block_ids=lambda request_id: (TABLE,))
    return SimpleNamespace(
        scheduled_new_reqs=[new], scheduled_cached_reqs=cached, num_scheduled_tokens={"r": num_tokens},
        kv_connector_block_state=state,
    )  # fmt: skip


def params_of(pair: Nodes, transfer_id: str) -> tuple[PrefillParams, DecodeParams]:
    """Both legs of a landing that this reserves."""
    digest = token_digest(pack_tokens(PROMPT))
    reserved = pair.reserve(transfer_id, token_digest=digest)
    common: dict[str, Any] = {
        "version": VERSION, "transfer_id": transfer_id, "num_prompt_tokens": len(PROMPT), "skip_tokens": 0,
    }  # fmt: skip
    first = PrefillParams(
        **common, peer="sink-0", token=reserved["token"], num_bytes=reserved["num_bytes"], deadline_s=30.0
    )
    return first, DecodeParams(**common, token_digest=digest, claim_secret=SECRET)


def test_what_one_half_ships_the_other_loads(pair: Nodes) -> None:
    """Byte for byte, with a report on either side."""
    transfer_id = pair.new_id()
    first, second = params_of(pair, transfer_id)
    prefill, decode = Half(pair.source[1], "prefill"), Half(pair.sink[1], "decode")
    try:
        prefill.cache.copy_(torch.randn_like(prefill.cache))
        request = FakeRequest(prefill_leg(first))
        prefill.scheduler.new_request(request)  # type: ignore[arg-type]
        metadata = prefill.scheduler.step(one_step(request.num_prompt_tokens))
        prefill.worker.begin_step()
        prefill.worker.layer_computed("l0", metadata)
        prefill.worker.end_step(metadata)
        report = read_report({"kv_transfer_params": prefill.scheduler.finished(request)})  # type: ignore[arg-type]
        assert report is not None
        assert (report.status, report.num_bytes, report.error) == ("staged", first.num_bytes, None)
        prefill.worker.finished({"r"})
        assert pair.record(transfer_id, "?wait_s=30&until=landed")["state"] == "landed"
        asked = FakeRequest(decode_leg(second))
        assert decode.scheduler.num_tokens_to_load(asked, 0) == 99  # type: ignore[arg-type]
        decode.scheduler.allocated(asked, SimpleNamespace(get_block_ids=lambda: (TABLE,)), 99)  # type: ignore[arg-type]
        loads = decode.scheduler.step(SimpleNamespace()).loads  # type: ignore[arg-type]
        decode.worker.start_loads(loads)
        loaded, failed = wait_until(lambda: found if (found := decode.worker.take_finished_loads())[0] else None)
        assert (loaded, failed) == ({"r"}, set())
        pages = slice(4, 4 + 99)
        assert torch.equal(decode.cache[pages], prefill.cache[pages])
        record = pair.record(transfer_id, "?wait_s=30&until=final")
        assert (record["state"], record["tokens_loaded"], record["tokens_recomputed"]) == ("consumed", 99, 1)
    finally:
        prefill.close()
        decode.close()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": VERSION + 1, "new": 1}, f"version {VERSION + 1}, this process version {VERSION}"),
        ({"version": 1}, "upgrade the older one"),
        ({"unknown": 1}, "unknown field `unknown`"),
        ({"num_prompt_tokens": "100"}, "`$.num_prompt_tokens`"),
        ({"skip_tokens": None}, "`$.skip_tokens`"),
    ],
    ids=str,
)
def test_what_breaks_the_contract_moves_nothing_and_says_why(pair: Nodes, change: dict[str, Any], words: str) -> None:
    """On the prefill leg in the response, on the decode leg in the landing's record, as the fake engine does."""
    transfer_id = pair.new_id()
    first, second = params_of(pair, transfer_id)
    prefill, decode = Half(pair.source[1], "prefill"), Half(pair.sink[1], "decode")
    try:
        leg = prefill_leg(first)
        request = FakeRequest({**leg, "prfaas": {**leg["prfaas"], **change}})
        prefill.scheduler.new_request(request)  # type: ignore[arg-type]
        assert request.num_prompt_tokens == len(PROMPT), "nothing was dropped"
        report = read_report({"kv_transfer_params": prefill.scheduler.finished(request)})  # type: ignore[arg-type]
        assert report is not None
        assert (report.status, report.num_bytes) == ("failed", 0)
        assert words in (report.error or "")
        leg = decode_leg(second)
        asked = FakeRequest({**leg, "prfaas": {**leg["prfaas"], **change}})
        assert decode.scheduler.num_tokens_to_load(asked, 0) == 0  # type: ignore[arg-type]
        record = pair.record(transfer_id, "?wait_s=30&until=final")
        assert (record["state"], record["tokens_loaded"], record["tokens_recomputed"]) == ("aborted", 0, 100)
        assert words in record["reason"]
        assert decode.scheduler.step(SimpleNamespace(kv_connector_block_state=None)).loads == StepMetadata().loads  # type: ignore[arg-type]
    finally:
        prefill.close()
        decode.close()


def test_a_stranger_at_the_engines_port_loads_nothing(pair: Nodes) -> None:
    """Neither with a guessed secret nor with the digest of a prompt of its own; the landing stays."""
    transfer_id = pair.new_id()
    _, second = params_of(pair, transfer_id)
    decode = Half(pair.sink[1], "decode")
    try:
        leg = decode_leg(second)
        request = FakeRequest({**leg, "prfaas": {**leg["prfaas"], "claim_secret": "a guess that is long enough"}})
        assert decode.scheduler.num_tokens_to_load(request, 0) == 0  # type: ignore[arg-type]
        decode.worker._client.ping()
        assert pair.record(transfer_id)["state"] == "reserved"
    finally:
        decode.close()
        pair.ask("DELETE", f"/v1/landings/{transfer_id}")
