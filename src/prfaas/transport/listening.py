"""TCP addresses to listen on: taken first, opened when everything behind them is ready.

A process takes its addresses before it does what is expensive or makes files, so that it can say at once and in one
line that one is taken. It listens on them only when it can answer: until then connections are refused.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from typing import Final

_BACKLOG: Final = 2048


class ListenAddress:
    """`host` (a name may have several addresses) and `port`, bound; `sockets` has one for each address. `setting` is
    what to change if they cannot be had. Raises OSError with one sentence that says what is wrong and what to do."""

    def __init__(self, host: str, port: int, setting: str, family: int = socket.AF_UNSPEC) -> None:
        self._shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._setting = setting
        self.sockets: list[socket.socket] = []
        try:
            found = socket.getaddrinfo(host, port, family, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (OSError, UnicodeError) as error:
            raise OSError(f"{setting}: {host} cannot be resolved: {error}") from None
        missing: OSError | None = None
        for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
            try:
                self._bind(family, address)
            except OSError as error:
                # `localhost` also names an address of IPv6 where there is no IPv6.
                missing = error
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    self.close()
                    raise self._problem(error) from None
        if not self.sockets:
            assert missing is not None, "a name that is resolved has an address"
            raise self._problem(missing) from None

    def listen(self) -> None:
        """Let connections in. Raises OSError as the constructor does: until somebody listens, two may be bound."""
        for sock in self.sockets:
            try:
                sock.listen(_BACKLOG)
            except OSError as error:
                self.close()
                raise self._problem(error) from None

    def close(self) -> None:
        """Give the address up. Who was handed the sockets may have closed them already."""
        for sock in self.sockets:
            with contextlib.suppress(OSError):
                sock.close()

    def _bind(self, family: int, address: object) -> None:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)  # type: ignore[arg-type]
        except OSError:
            sock.close()
            raise
        self.sockets.append(sock)

    def _problem(self, error: OSError) -> OSError:
        what = {
            errno.EADDRINUSE: "is in use by another process; stop it, or change",
            errno.EADDRNOTAVAIL: "is not an address of this machine; change",
            errno.EACCES: "may not be used by this user; change",
        }.get(error.errno or 0, f"cannot be listened on ({os.strerror(error.errno or 0)}); change")
        # One argument: with a number first, the sentence would begin with it.
        return type(error)(f"{self._shown} {what} {self._setting}")
