"""docs/protocols.md lists every message, as the types have it."""

from __future__ import annotations

import pytest

from prfaas.core.wire.node_api import FINAL_STATES, LandingState
from tools.contract_doc import BEGIN, CONTRACTS, END, PAGE, rewritten

TEXT = PAGE.read_text(encoding="utf-8")


def test_generated_part_is_current() -> None:
    """Run `python tools/contract_doc.py` if this fails."""
    assert TEXT == rewritten(TEXT)


@pytest.mark.parametrize("page", ["", BEGIN, f"{END}{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_a_page_without_its_comments_is_refused(page: str) -> None:
    """Otherwise text outside the generated part would be lost."""
    with pytest.raises(ValueError, match="once each"):
        rewritten(page)


def test_every_state_of_a_landing_is_explained() -> None:
    """In the part that people write."""
    for state in LandingState:
        assert f"| `{state}` |" in TEXT.partition(BEGIN)[0]
    assert {"consumed", "aborted", "expired"} == FINAL_STATES


def test_all_three_contracts_are_there() -> None:
    """Each with its version."""
    assert len(CONTRACTS) == 3
    for heading, module, _ in CONTRACTS:
        assert f"### {heading}: version {module.VERSION}" in TEXT
