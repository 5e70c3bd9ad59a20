"""What the gateway says to vLLM, and what it makes of the answers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas.core.wire.contract import to_values
from prfaas.core.wire.params import VERSION, DecodeParams, PrefillParams
from prfaas.engines.dialect import EngineLoad, PrefillAnswer, PrefillFault, PrefillPrompt
from prfaas.engines.kinds import DEFAULT_KIND, STEERING_CONTAINERS, STEERING_FIELDS, dialect_of

VLLM = dialect_of(DEFAULT_KIND)
PREFILL = PrefillParams(
    version=VERSION, transfer_id="a", peer="pd-0", token="t" * 22, num_prompt_tokens=9, skip_tokens=0, num_bytes=5,
    deadline_s=30.0,
)  # fmt: skip
DECODE = DecodeParams(
    version=VERSION, transfer_id="a", num_prompt_tokens=9, skip_tokens=0, token_digest="0" * 64, claim_secret="s" * 22
)


def staged(**said: Any) -> bytes:
    """A prefill engine's answer."""
    return json.dumps(
        {
            "kv_transfer_params": {
                "prfaas": {"transfer_id": "t", "status": "staged", "num_bytes": 5, "error": None, **said}
            }
        }
    ).encode()


def test_the_prefill_leg_asks_for_one_token_of_the_prompt_in_tokens() -> None:
    """As docs/protocols.md has it; a tenant's salt goes along."""
    body = json.loads(VLLM.prefill_body(PrefillPrompt("m", [1, 2, 3], "tenant"), PREFILL))
    assert body == {
        "model": "m", "prompt": [1, 2, 3], "max_tokens": 1, "stream": False, "cache_salt": "tenant",
        "kv_transfer_params": {"do_remote_decode": True, "do_remote_prefill": False, "prfaas": to_values(PREFILL)},
    }  # fmt: skip
    assert "cache_salt" not in json.loads(VLLM.prefill_body(PrefillPrompt("m", [1, 2]), PREFILL))


def test_the_decode_leg_is_the_clients_body_and_where_to_load_from() -> None:
    """Nothing of the client's is changed, whatever stands behind its object."""
    body = {"model": "m", "stop": ["x"], "logit_bias": {"1": 1.5}}
    sent = json.loads(VLLM.decode_body(json.dumps(body).encode() + b" \r\n\t", DECODE))
    ours = {"do_remote_decode": False, "do_remote_prefill": True, "prfaas": to_values(DECODE)}
    assert sent == {**body, "kv_transfer_params": ours}


def test_a_prefill_answer_that_staged_bytes_is_good() -> None:
    """No fault."""
    assert VLLM.read_prefill(200, staged()) == PrefillAnswer(5)


@pytest.mark.parametrize(
    ("status", "body", "fault"),
    [
        (500, b"x", PrefillFault.HTTP_ERROR),
        (500, staged(), PrefillFault.HTTP_ERROR),
        (200, b"x", PrefillFault.NO_TRANSFER),
        (200, b"{}", PrefillFault.NO_TRANSFER),
        (200, b"[]", PrefillFault.NO_TRANSFER),
        (200, b'{"kv_transfer_params":null}', PrefillFault.NO_TRANSFER),
        (200, staged(num_bytes=0), PrefillFault.NO_BYTES),
        (200, staged(num_bytes=None), PrefillFault.FAILED),
        (200, staged(num_bytes=True), PrefillFault.FAILED),
        (200, staged(num_bytes=-1), PrefillFault.FAILED),
        (200, staged(status="perhaps"), PrefillFault.FAILED),
        (200, staged(unknown=1), PrefillFault.FAILED),
        (200, staged(status="failed", error="no room"), PrefillFault.FAILED),
    ],
)
def test_any_other_prefill_answer_is_a_fault(status: int, body: bytes, fault: PrefillFault) -> None:
    """Silence about the transfer above all."""
    answer = VLLM.read_prefill(status, body)
    assert (answer.fault, answer.num_bytes) == (fault, 0)
    assert answer.detail


def test_an_engines_words_are_kept_short() -> None:
    """They may repeat the whole prompt."""
    assert len(VLLM.read_prefill(500, b"x" * 9000).detail) < 300
    assert len(VLLM.read_prefill(200, staged(status="failed", error="x" * 9000)).detail) < 300


METRICS = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a } b"} 3.0
vllm:num_requests_running{engine="1",model_name="a } b"} 4.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="a } b"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 9.0
"""


def test_load_is_the_sum_over_an_engines_ranks() -> None:
    """Of these two names only, with labels, without, and with a time stamp behind."""
    assert VLLM.read_load(200, METRICS) == EngineLoad(7, 2)
    assert VLLM.read_load(200, b"vllm:num_requests_running 1\nvllm:num_requests_waiting 0 1700000000") == EngineLoad(
        1, 0
    )


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, METRICS),
        (200, b""),
        (200, METRICS.replace(b"vllm:num_requests_waiting{", b"other{")),
        (200, METRICS.replace(b"} 2.0", b"} NaN")),
        (200, METRICS.replace(b"} 2.0", b"} -1")),
        (200, METRICS.replace(b"} 2.0", b"}")),
    ],
)
def test_an_engine_that_does_not_say_its_load_has_none(status: int, body: bytes) -> None:
    """Which is not the same as being idle."""
    assert VLLM.read_load(status, body) is None


@given(st.integers(100, 599), st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_answer_breaks_the_reader(status: int, body: bytes) -> None:
    """An engine's bytes are read, never trusted."""
    assert VLLM.read_prefill(status, body).fault is not None
    VLLM.read_load(status, b"vllm:num_requests_running{" + body)


def test_what_could_steer_a_kind_is_stripped_for_every_kind() -> None:
    """A dialect that forgot to tell would leave a door open."""
    assert VLLM.steering_fields <= STEERING_FIELDS
    assert VLLM.steering_containers <= STEERING_CONTAINERS
    assert {"kv_transfer_params", "bootstrap_room", "data_parallel_rank"} <= STEERING_FIELDS
    assert {"vllm_xargs", "custom_params"} == STEERING_CONTAINERS
