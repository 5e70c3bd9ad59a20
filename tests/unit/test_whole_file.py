"""Files that appear whole or not at all: after errors, signals and full disks too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from prfaas.whole_file import CannotWrite, written_whole

#: As long as a file system's names may be.
LONGEST = "x" * 251 + ".svg"
WRITES = """
import sys, time
from pathlib import Path
from prfaas.whole_file import written_whole
with written_whole(Path(sys.argv[1])) as first, written_whole(Path(sys.argv[2])) as second:
    first.write(b"half")
    sys.stdout.write("ready")
    sys.stdout.flush()
    time.sleep(60)
"""


def test_what_was_there_stays_until_the_end(tmp_path: Path) -> None:
    """And after an error."""
    out = tmp_path / "out"
    out.write_text("before")
    with pytest.raises(ZeroDivisionError), written_whole(out) as file:
        file.write(b"%d" % (1 / 0))
    assert out.read_text() == "before"
    with written_whole(out) as file:
        file.write(b"all of it")
        file.flush()
        assert out.read_text() == "before"
    assert out.read_text() == "all of it"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    """And ends the process as it would have."""
    argv = [sys.executable, "-c", WRITES, str(tmp_path / "a"), str(tmp_path / "b")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(5) == b"ready"
        assert len(list(tmp_path.iterdir())) == 2
        process.send_signal(number)
        assert process.wait(30) == -number
    assert list(tmp_path.iterdir()) == []


def test_signals_are_as_before_afterwards(tmp_path: Path) -> None:
    """And whoever catches them by themselves is not disturbed."""
    with written_whole(tmp_path / "a"):
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with written_whole(tmp_path / "b"):
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_names_may_be_as_long_as_the_file_system_takes(tmp_path: Path) -> None:
    """The temporary one's too; one byte more is told before anything is written."""
    with written_whole(tmp_path / LONGEST) as file:
        file.write(b"text")
    assert (tmp_path / LONGEST).read_text() == "text"
    with pytest.raises(OSError, match="name too long"), written_whole(tmp_path / f"x{LONGEST}"):
        pytest.fail("the block must not be entered")
    assert [path.name for path in tmp_path.iterdir()] == [LONGEST]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
def test_a_full_disk_is_told_with_the_file() -> None:
    """A device is written to itself, and not replaced by a file."""
    with (
        pytest.raises(CannotWrite, match="/dev/full cannot be written: No space"),
        written_whole(Path("/dev/full")) as f,
    ):
        f.write(b"x" * 100_000)
    assert Path("/dev/full").is_char_device()


def test_a_pipe_is_written_to_at_once(tmp_path: Path) -> None:
    """Whoever reads it needs not wait for the end."""
    os.mkfifo(tmp_path / "pipe")
    heard: list[str] = []
    reader = threading.Thread(target=lambda: heard.append((tmp_path / "pipe").read_text()))
    reader.start()
    with written_whole(tmp_path / "pipe") as file:
        file.write(b"text")
    reader.join(30)
    assert heard == ["text"]
