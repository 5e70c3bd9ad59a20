"""Simulated time at the pace of an event loop."""

from __future__ import annotations

import asyncio
import time

from prfaas.engines.emulated.clock import LoopKernel


def test_what_is_late_is_told_that_it_was_in_time() -> None:
    """The loop is blocked over three things that are due: they happen in order, at their own times."""

    async def main() -> list[tuple[str, float]]:
        kernel, told = LoopKernel(asyncio.get_running_loop()), list[tuple[str, float]]()

        def note(name: str) -> None:
            told.append((name, kernel.now_s))
            if name == "a":
                # Back to back: the next one counts from when this one was due.
                kernel.after(0.01, note, "b")

        kernel.at(0.02, note, "c2")
        kernel.at(0.01, note, "a")
        kernel.at(0.02, note, "c3")
        time.sleep(0.1)  # noqa: ASYNC251 - a busy process
        await asyncio.sleep(0.05)
        return told

    assert asyncio.run(main()) == [("a", 0.01), ("c2", 0.02), ("c3", 0.02), ("b", 0.02)]


def test_an_earlier_thing_is_not_kept_by_a_later_one() -> None:
    """The timer is set anew for what is due sooner, and cancelled things do not hinder."""

    async def main() -> list[str]:
        kernel, told, happened = LoopKernel(asyncio.get_running_loop()), list[str](), asyncio.Event()
        kernel.at(3600.0, told.append, "never")
        kernel.at(0.01, told.append, "cancelled").cancel()
        kernel.at(0.02, told.append, "soon")
        kernel.at(0.02, happened.set)
        await happened.wait()
        return told

    assert asyncio.run(main()) == ["soon"]


def test_what_is_due_happens_before_what_comes_from_outside() -> None:
    """`catch_up` brings the time to now."""

    async def main() -> None:
        kernel, told = LoopKernel(asyncio.get_running_loop()), list[float]()
        kernel.at(0.01, lambda: told.append(kernel.now_s))
        time.sleep(0.03)  # noqa: ASYNC251 - a busy process
        kernel.catch_up()
        assert told == [0.01]
        assert kernel.now_s >= 0.03

    asyncio.run(main())
