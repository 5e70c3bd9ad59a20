"""A KV node takes the path of its engines' socket without harm to anybody else's file."""

from __future__ import annotations

import os
import socket
import stat
from contextlib import closing
from pathlib import Path
from threading import Barrier, Thread

import pytest

from prfaas.kvnode.engine_path import EnginePath


def connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
        return True


def leave_stale(path: Path) -> None:
    """What a killed node leaves."""
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))


def test_it_listens_for_this_user_only_and_leaves_nothing(tmp_path: Path) -> None:
    """At a path where nothing was."""
    path = tmp_path / "s"
    with closing(EnginePath(str(path))):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert connects(path)
    assert not path.exists()


@pytest.mark.parametrize("kind", ["file", "folder", "link to a file", "link to a stale socket", "fifo"])
def test_what_is_not_a_socket_is_refused_and_stays(tmp_path: Path, kind: str) -> None:
    """It is somebody's data, and a link may lead anywhere."""
    path, elsewhere = tmp_path / "s", tmp_path / "elsewhere"
    elsewhere.write_text("precious")
    if kind == "file":
        path.write_text("precious")
    elif kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        if "socket" in kind:
            elsewhere.unlink()
            leave_stale(elsewhere)
        path.symlink_to(elsewhere)
    before = path.lstat()
    with pytest.raises(OSError, match=f"--socket {path}: there is a file that is not a socket; remove it, or choose"):
        EnginePath(str(path))
    assert (path.lstat().st_ino, path.lstat().st_mode) == (before.st_ino, before.st_mode)
    assert elsewhere.exists()


@pytest.mark.parametrize("kind", ["answers", "has a full queue", "takes datagrams"])
def test_a_socket_on_which_somebody_listens_is_refused_and_goes_on(tmp_path: Path, kind: str) -> None:
    """Else two nodes would believe that they have the engine."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM if "datagrams" in kind else socket.SOCK_STREAM) as other:
        other.bind(str(path))
        waiting = []
        if "datagrams" not in kind:
            other.listen(0)
        while "full" in kind:
            waiting.append(socket.socket(socket.AF_UNIX))
            waiting[-1].setblocking(False)
            if waiting[-1].connect_ex(str(path)):
                break
        with pytest.raises(OSError, match=f"--socket {path}: another process listens there"):
            EnginePath(str(path))
        for client in waiting:
            client.close()
        assert path.is_socket()


def test_the_socket_of_a_killed_node_is_replaced(tmp_path: Path) -> None:
    """A node must start again after kill -9."""
    leave_stale(tmp_path / "s")
    with closing(EnginePath(str(tmp_path / "s"))):
        assert connects(tmp_path / "s")


def test_at_the_end_only_its_own_socket_is_removed(tmp_path: Path) -> None:
    """Somebody may have replaced it meanwhile."""
    path = tmp_path / "s"
    mine = EnginePath(str(path))
    path.unlink()
    with closing(EnginePath(str(path))):
        mine.close()
        assert connects(path)


def test_of_many_that_start_at_once_one_gets_a_stale_path(tmp_path: Path) -> None:
    """The others are told that somebody listens."""
    path, together = tmp_path / "s", Barrier(8)
    leave_stale(path)
    got: list[EnginePath] = []
    told: list[str] = []

    def start() -> None:
        together.wait(10)
        try:
            got.append(EnginePath(str(path)))
        except OSError as error:
            told.append(str(error))

    starts = [Thread(target=start) for _ in range(8)]
    for thread in starts:
        thread.start()
    for thread in starts:
        thread.join(30)
    assert (len(got), len(told)) == (1, 7)
    assert all("another process listens there" in text for text in told)
    assert connects(path)
    got[0].close()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    """With the option."""
    with pytest.raises(OSError, match=f"--socket {tmp_path}/none/s: No such file or directory"):
        EnginePath(str(tmp_path / "none" / "s"))
