"""The gateway's steps one by one, for tests that must get in between."""

from __future__ import annotations

import secrets
from pathlib import Path

from prfaas.core.cache.hashing import pack_tokens, token_digest
from prfaas.testing.site import MODEL_NAME, Answer, Site, http

#: What a gateway would draw anew for every request.
CLAIM_SECRET = "a-secret-of-this-test-alone"


def ship_by_hand(site: Site, prompt: list[int], lease_s: float = 30.0) -> str:
    """Reserve, prefill, wait until landed; returns the transfer's id."""
    transfer_id = secrets.token_hex(8)
    asked = {
        "transfer_id": transfer_id, "num_prompt_tokens": len(prompt), "skip_tokens": 0, "lease_s": lease_s,
        "token_digest": token_digest(pack_tokens(prompt)), "claim_secret": CLAIM_SECRET,
    }  # fmt: skip
    reservation, _ = http(f"{site.decode_node}/v1/landings", asked)
    ours = {
        "version": 2, "transfer_id": transfer_id, "peer": "east-0", "token": reservation["token"],
        "num_prompt_tokens": len(prompt), "skip_tokens": 0, "num_bytes": reservation["num_bytes"], "deadline_s": 30.0,
    }  # fmt: skip
    params = {"do_remote_decode": True, "do_remote_prefill": False, "prfaas": ours}
    body = {"model": MODEL_NAME, "prompt": prompt, "max_tokens": 1, "temperature": 0, "kv_transfer_params": params}
    reply, _ = http(f"{site.prefill}/v1/completions", body)
    assert reply["kv_transfer_params"]["prfaas"]["status"] == "staged", reply
    record, _ = http(f"{site.decode_node}/v1/landings/{transfer_id}?wait_s=20")
    assert record["state"] == "landed", record
    return transfer_id


def landing_bytes(site: Site) -> Path:
    """The file that begins with the only landing, for tests that damage it: space is given out first fit."""
    pid = site.supervisor.processes["kvnode-east-0"].pid
    [arena] = Path("/dev/shm").glob(f"prfaas-east-0-{pid}-*.arena")
    return arena


def decode_by_hand(site: Site, prompt: list[int], transfer_id: str, num_candidates: int = 1, **other: object) -> Answer:
    """Send the prompt to decode with its landing. `other` replaces fields of our `kv_transfer_params`."""
    ours = {
        "version": 2, "transfer_id": transfer_id, "num_prompt_tokens": len(prompt), "skip_tokens": 0,
        "token_digest": token_digest(pack_tokens(prompt)), "claim_secret": CLAIM_SECRET, **other,
    }  # fmt: skip
    params = {"do_remote_decode": False, "do_remote_prefill": True, "prfaas": ours}
    return site.ask(prompt, 8, url=site.decode, kv_transfer_params=params, logprobs=num_candidates)
