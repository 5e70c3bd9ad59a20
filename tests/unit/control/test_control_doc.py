"""docs/control.md says what the code enforces."""

from __future__ import annotations

from typing import get_args

import pytest

from prfaas.core.control import actions, events
from prfaas.core.control.request import LandingPhase, RequestState
from tools.control_doc import BEGIN, END, PAGE, results_of_actions, rewritten

TEXT = PAGE.read_text(encoding="utf-8")


def test_generated_part_is_current() -> None:
    """Run `python tools/control_doc.py` if this fails."""
    assert TEXT == rewritten(TEXT)


@pytest.mark.parametrize("page", ["", BEGIN, f"{END}{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_a_page_without_its_comments_is_refused(page: str) -> None:
    """Otherwise text outside the generated part would be lost."""
    with pytest.raises(ValueError, match="once each"):
        rewritten(page)


def test_every_name_is_on_the_page() -> None:
    """States, phases, events and actions."""
    kinds = (*get_args(events.RequestEvent), *get_args(events.WorldEvent), events.Tick, *get_args(actions.Action))
    for name in (*RequestState, *LandingPhase, *(kind.__name__ for kind in kinds)):
        assert f"`{name}`" in TEXT, name


def test_every_action_has_a_result_and_every_result_is_an_event() -> None:
    """In the table at the top of the actions' module, which the driver keeps."""
    results = results_of_actions()
    assert list(results) and set(results) == {kind.__name__ for kind in get_args(actions.Action)}
    known = {kind.__name__ for kind in (*get_args(events.RequestEvent), *get_args(events.WorldEvent))}
    named = {
        word.strip("`")
        for text in results.values()
        for word in text.replace(",", " ").replace(";", " ").split()
        if word.startswith("`")
    }
    assert named <= known
