"""A file that is watched: what counts as a change, and what a bad file does."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from prfaas.core.errors import PrfaasError
from prfaas.deployment.watch import FileWatch, file_stamp
from prfaas.testing.gateway_rig import until as rig_until

logger = logging.getLogger("prfaas.test")
HANG_S = 30.0


def read(path: Path) -> str:
    text = path.read_text()
    if "bad" in text:
        raise PrfaasError(f"{path}:1: bad")
    return text


async def until(condition: Callable[[], bool]) -> None:
    await rig_until(condition, HANG_S)


def remove(path: Path) -> None:
    path.unlink()


def write(path: Path, text: str) -> None:
    path.write_text(text)


@contextlib.asynccontextmanager
async def watched(
    path: Path, poll_s: float, reader: Callable[[Path], str] = read
) -> AsyncIterator[tuple[FileWatch[str], list[str]]]:
    found: list[str] = []
    watch = FileWatch(path, reader, found.append, logger, stamp=file_stamp(path), poll_s=poll_s)
    task = asyncio.create_task(watch.run())
    try:
        yield watch, found
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _changes(path: Path) -> None:
    write(path, "one")
    async with watched(path, 0.02) as (_, found):
        write(path, "two")
        await until(lambda: found == ["two"])
        other = path.with_name("other")
        write(other, "six")
        os.replace(other, path)
        await until(lambda: found == ["two", "six"])


def test_a_file_that_is_written_or_replaced_is_read(tmp_path: Path) -> None:
    """In place, or by renaming another over it, as editors and Kubernetes do."""
    asyncio.run(_changes(tmp_path / "d.yaml"))


async def _refused(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(path, "one")
    async with watched(path, 0.02) as (_, found):
        write(path, "bad")
        await until(lambda: "d.yaml:1: bad" in caplog.text)
        remove(path)
        await until(lambda: "No such file" in caplog.text)
        write(path, "good again")
        await until(lambda: found == ["good again"])
    told = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(told) == 2, [record.getMessage() for record in told]


def test_a_bad_file_is_told_once_and_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nor does one that is gone; the next good one is taken."""
    asyncio.run(_refused(tmp_path / "d.yaml", caplog))


async def _half_written(path: Path) -> None:
    write(path, "one")
    found: list[str] = []
    watch = FileWatch(path, read, found.append, logger, stamp=file_stamp(path))
    for text in ("h", "ha", "hal"):
        write(path, text)
        await watch.look()
    write(path, "whole")
    await watch.look()
    assert found == []
    await watch.look()
    await watch.look()
    assert found == ["whole"]


def test_what_is_still_being_written_is_not_read(tmp_path: Path) -> None:
    """A change is read at the second look that finds it, and once."""
    asyncio.run(_half_written(tmp_path / "d.yaml"))


async def _changed_while_read(path: Path) -> None:
    write(path, "one")
    is_read, go_on = threading.Event(), threading.Event()

    def slow(at: Path) -> str:
        text = at.read_text()
        is_read.set()
        assert go_on.wait(HANG_S)
        return text

    async with watched(path, 0.02, slow) as (_, found):
        write(path, "half")
        await until(is_read.is_set)
        write(path, "whole file")
        go_on.set()
        await until(lambda: bool(found))
        assert found == ["whole file"]


def test_what_changed_while_it_was_read_is_read_again(tmp_path: Path) -> None:
    """What was read first is not used: nobody knows what it was half of."""
    asyncio.run(_changed_while_read(tmp_path / "d.yaml"))


async def _poked(path: Path) -> None:
    write(path, "one")
    async with watched(path, HANG_S) as (watch, found):
        await asyncio.sleep(0)
        watch.poke()
        await until(lambda: found == ["one"])
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: found == ["one", "one"])
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


def test_a_hangup_signal_reads_at_once(tmp_path: Path) -> None:
    """Without waiting for the next look, changed or not."""
    asyncio.run(_poked(tmp_path / "d.yaml"))


async def _failing(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(path, "one")
    found: list[str] = []

    def take(text: str) -> None:
        found.append(text)
        raise RuntimeError("taken badly")

    task = asyncio.create_task(FileWatch(path, read, take, logger, stamp=file_stamp(path), poll_s=0.02).run())
    write(path, "two")
    await until(lambda: found == ["two"])
    write(path, "three")
    await until(lambda: found == ["two", "three"])
    task.cancel()
    assert "taken badly" in caplog.text


def test_a_listener_that_fails_does_not_end_the_watch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The next change is told too."""
    asyncio.run(_failing(tmp_path / "d.yaml", caplog))


async def _changed_before(path: Path) -> None:
    write(path, "one")
    stamp = file_stamp(path)
    write(path, "two")
    found: list[str] = []
    watch = FileWatch(path, read, found.append, logger, stamp=stamp)
    await watch.look()
    await watch.look()
    assert found == ["two"]


def test_a_change_between_the_first_reading_and_the_watch_is_not_missed(tmp_path: Path) -> None:
    """A gateway may need seconds to start."""
    asyncio.run(_changed_before(tmp_path / "d.yaml"))


async def _defect(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def reader(read_path: Path) -> str:
        text = read(read_path)
        if text == "defect":
            raise ZeroDivisionError
        return text

    write(path, "one")
    async with watched(path, 0.02, reader) as (_, found):
        write(path, "defect")
        await until(lambda: "reading the deployment file failed" in caplog.text)
        write(path, "three")
        await until(lambda: found == ["three"])


def test_a_defect_while_the_file_is_read_does_not_end_the_watch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A plan is computed on the way: whatever fails there, the next change of the file is seen."""
    asyncio.run(_defect(tmp_path / "d.yaml", caplog))
