"""An address is taken first and opened later; whoever cannot have it is told which, and what to do."""

from __future__ import annotations

import socket
from contextlib import closing

import pytest

from prfaas.transport.listening import ListenAddress


def test_an_address_is_taken_at_once_and_lets_nobody_in_before_it_listens() -> None:
    """Connections are refused meanwhile, not kept waiting."""
    with closing(ListenAddress("127.0.0.1", 0, "--http")) as address:
        where = address.sockets[0].getsockname()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(where, 5)
        address.listen()
        socket.create_connection(where, 5).close()


def test_a_taken_address_is_named_with_what_to_do() -> None:
    """In one sentence that begins with the address."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(OSError, match="in use") as caught:
            ListenAddress("127.0.0.1", port, "gateway.port")
    assert str(caught.value) == f"127.0.0.1:{port} is in use by another process; stop it, or change gateway.port"


def test_of_two_that_are_bound_the_second_that_listens_is_told() -> None:
    """Until somebody listens the kernel lets both have the address."""
    with closing(ListenAddress("127.0.0.1", 0, "--http")) as first:
        port = first.sockets[0].getsockname()[1]
        with closing(ListenAddress("127.0.0.1", port, "--http")) as second:
            first.listen()
            with pytest.raises(OSError, match=f"127.0.0.1:{port} is in use by another process; stop it, or change"):
                second.listen()


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("192.0.2.1", "192.0.2.1:0 is not an address of this machine; change --http"),
        ("a..b", "--http: a..b cannot be resolved"),
    ],
)
def test_an_address_of_somebody_else_is_told_too(host: str, expected: str) -> None:
    """Addresses for documentation belong to nobody."""
    with pytest.raises(OSError, match=r"192|resolved") as caught:
        ListenAddress(host, 0, "--http")
    assert expected in str(caught.value)


def test_a_name_is_listened_on_with_all_its_addresses() -> None:
    """As far as this machine has them."""
    with closing(ListenAddress("localhost", 0, "--http")) as address:
        address.listen()
        for sock in address.sockets:
            socket.create_connection(sock.getsockname()[:2], 5).close()
