"""Whether everything of a deployment works, from what it says of itself."""

from __future__ import annotations

from typing import Any

import pytest

from prfaas.launch.readiness import not_ready

GATEWAY: dict[str, Any] = {"instances": {"a": {"engine": True, "node": True}, "b": {"engine": True, "node": True}}}
NODES: dict[str, Any] = {"a": {"peers": {"b": {"lanes_up": True}}}, "b": {"peers": {}}}


def test_nothing_is_missing_where_all_works() -> None:
    """Engines, nodes and lanes."""
    assert not_ready(GATEWAY, NODES) == []


@pytest.mark.parametrize("what", ["engine", "node"])
def test_an_instance_of_which_half_works_is_not_ready(what: str) -> None:
    """The half that does not is named."""
    gateway = {"instances": {**GATEWAY["instances"], "b": {**GATEWAY["instances"]["b"], what: False}}}
    assert not_ready(gateway, NODES) == [f"b: {what}"]


def test_lanes_that_are_down_are_named() -> None:
    """By both of their ends."""
    nodes = {**NODES, "a": {"peers": {"b": {"lanes_up": False}}}}
    assert not_ready(GATEWAY, nodes) == ["lanes of a to b"]
