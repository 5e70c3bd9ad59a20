"""`kv_transfer_params`: both legs and the report, strict on both ends."""

from __future__ import annotations

from typing import Any

import pytest

from prfaas.core.wire.contract import BadMessage, OtherVersion, to_values
from prfaas.core.wire.params import (
    VERSION,
    DecodeParams,
    PrefillParams,
    PrefillReport,
    PrefillStatus,
    decode_leg,
    ours,
    prefill_leg,
    read_leg,
    read_report,
    report_leg,
)

PREFILL = PrefillParams(
    version=VERSION, transfer_id="a", peer="pd-0", token="t" * 22, num_prompt_tokens=9, skip_tokens=0, num_bytes=5,
    deadline_s=30.0,
)  # fmt: skip
DECODE = DecodeParams(
    version=VERSION, transfer_id="a", num_prompt_tokens=9, skip_tokens=0, token_digest="0" * 64, claim_secret="s" * 22
)
REPORT = PrefillReport(transfer_id="a", status=PrefillStatus.STAGED, num_bytes=5, error=None)


def test_each_leg_is_read_by_its_own_engine() -> None:
    """And is nothing to the other."""
    prefill, decode = prefill_leg(PREFILL), decode_leg(DECODE)
    assert read_leg(ours(prefill, PrefillParams) or {}, PrefillParams) == PREFILL
    assert read_leg(ours(decode, DecodeParams) or {}, DecodeParams) == DECODE
    assert ours(prefill, DecodeParams) is None
    assert ours(decode, PrefillParams) is None
    assert read_report({"kv_transfer_params": report_leg(REPORT)}) == REPORT


@pytest.mark.parametrize("params", [None, {}, 5, [], {"do_remote_decode": True}])
def test_other_requests_are_left_alone(params: object) -> None:
    """Those of other connectors too, and what their engines answer."""
    assert ours(params, PrefillParams) is None
    assert read_report({"kv_transfer_params": params}) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"unknown": 1}, "unknown field `unknown`"),
        ({"transfer_id": None}, r"transfer_id"),
        ({"transfer_id": "two\nlines"}, r"transfer_id"),
        ({"num_prompt_tokens": "9"}, r"num_prompt_tokens"),
        ({"num_prompt_tokens": 1}, r"num_prompt_tokens"),
        ({"skip_tokens": -1}, r"skip_tokens"),
        ({"skip_tokens": True}, r"skip_tokens"),
    ],
    ids=str,
)
def test_a_field_that_breaks_the_contract_is_named(change: dict[str, Any], words: str) -> None:
    """With its message; whatever is left out is named too."""
    for leg, good in ((PrefillParams, to_values(PREFILL)), (DecodeParams, to_values(DECODE))):
        with pytest.raises(BadMessage, match=rf"^{leg.__name__}: .*{words}"):
            read_leg({**good, **change}, leg)
        for name in good.keys() - {"version"}:
            with pytest.raises(BadMessage, match=f"missing required field `{name}`"):
                read_leg({key: value for key, value in good.items() if key != name}, leg)


def test_another_version_is_told_before_anything_else() -> None:
    """With both numbers; nothing of the message is taken."""
    for theirs in (1, VERSION + 1, None, "2", True):
        with pytest.raises(OtherVersion, match=f"this process version {VERSION}; upgrade the older one"):
            read_leg({"version": theirs, "from the": "future"}, DecodeParams)
    with pytest.raises(OtherVersion, match="speaks no version"):
        read_leg({}, PrefillParams)


def test_what_is_secret_is_not_shown() -> None:
    """Messages are logged and go into assertions."""
    assert "t" * 22 not in repr(PREFILL)
    assert "s" * 22 not in repr(DECODE)
