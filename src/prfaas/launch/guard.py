"""Ends process groups whose supervisor is gone without ending them itself: killed by -9, or by a second Ctrl-C.

The supervisor holds the other end of standard input and never writes to it but for `+GROUP` when a group starts and
`-GROUP` when it has ended. When the pipe closes, whatever is left is killed. A process of its own is needed because
PR_SET_PDEATHSIG reaches a supervisor's children only, and vLLM's engine core is a grandchild.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterable


def groups_left(lines: Iterable[str]) -> set[int]:
    """Groups that were started and have not ended when the lines end. A last line that was cut off does not count."""
    groups: set[int] = set()
    for line in lines:
        if not line.endswith("\n"):
            break
        group = int(line[1:])
        if line.startswith("+"):
            groups.add(group)
        else:
            groups.discard(group)
    return groups


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for group in groups_left(sys.stdin):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
