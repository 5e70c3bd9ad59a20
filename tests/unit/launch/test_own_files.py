"""What is written under a known name never ends up in another file."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from prfaas.launch.own_files import make_own_folder, open_own_file


def test_a_file_is_emptied_and_a_new_one_is_private(tmp_path: Path) -> None:
    """As a log of an earlier run."""
    make_own_folder(tmp_path / "a" / "logs")
    assert stat.S_IMODE((tmp_path / "a" / "logs").stat().st_mode) == 0o700
    path = tmp_path / "a" / "logs" / "x.log"
    for text in (b"a long line", b"short"):
        with open_own_file(path) as stream:
            stream.write(text)
        assert path.read_bytes() == text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("kind", ["link", "dangling link", "hard link", "fifo", "folder"])
def test_a_trap_is_refused_and_what_it_leads_to_stays(tmp_path: Path, kind: str) -> None:
    """It neither empties, nor makes, nor waits."""
    path, target = tmp_path / "gateway.log", tmp_path / "target"
    if kind != "dangling link":
        target.write_text("precious")
    if "hard" in kind:
        os.link(target, path)
    elif "link" in kind:
        path.symlink_to(target)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(OSError, match=f"{path} .*is not written to; remove it, or choose another folder"):
        open_own_file(path)
    assert target.exists() == (kind != "dangling link")
    assert not target.exists() or target.read_text() == "precious"


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who owns it can put anything there at any moment."""
    make_own_folder(tmp_path)
    monkeypatch.setattr("os.geteuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(OSError, match=f"{tmp_path}/ belongs to another user"):
        make_own_folder(tmp_path)
