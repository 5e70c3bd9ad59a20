"""Only so many characters are tokenized at once."""

from __future__ import annotations

import asyncio

import pytest

from prfaas.gateway.prompt.text_budget import TextBudget


def test_texts_go_in_as_they_came_and_as_there_is_room() -> None:
    """A short one does not overtake a long one, and one that is longer than everything has everything."""

    async def scenario() -> None:
        budget, went_in = TextBudget(100), list[str]()

        async def text(name: str, num_chars: int) -> int:
            share = await budget.take(num_chars)
            went_in.append(name)
            return share

        waits = {name: asyncio.create_task(text(name, n)) for name, n in (("a", 60), ("b", 1000), ("c", 1), ("d", 40))}
        await asyncio.sleep(0)
        assert went_in == ["a"]
        budget.give_back(await waits["a"])
        assert await waits["b"] == 100
        assert went_in == ["a", "b"]
        budget.give_back(100)
        assert await waits["c"] + await waits["d"] == 41
        assert went_in == ["a", "b", "c", "d"]

    asyncio.run(scenario())


@pytest.mark.parametrize("has_its_turn", [False, True])
def test_who_stops_waiting_takes_nothing(has_its_turn: bool) -> None:
    """Neither before its turn nor in the moment between its turn and its waking up."""

    async def scenario() -> None:
        budget = TextBudget(10)
        assert await budget.take(10) == 10
        leaving, staying = asyncio.create_task(budget.take(6)), asyncio.create_task(budget.take(6))
        await asyncio.sleep(0)
        if has_its_turn:
            budget.give_back(10)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        if not has_its_turn:
            budget.give_back(10)
        assert await asyncio.wait_for(staying, 5) == 6
        budget.give_back(6)
        assert await asyncio.wait_for(budget.take(10), 5) == 10

    asyncio.run(scenario())
