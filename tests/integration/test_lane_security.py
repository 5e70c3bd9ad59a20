"""Who may open an encrypted lane, who may not, and what happens to certificates that change or end."""

from __future__ import annotations

import dataclasses
import os
import random
import socket
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from prfaas.certs.authority import Pair, issue, make_authority, new_key
from prfaas.certs.files import read_authority, write_pair
from prfaas.core.wire.lane import LaneProtocol
from prfaas.core.wire.messages import Hello
from prfaas.testing.node_pair import (
    FAST_LIMITS,
    NodePair,
    issue_credentials,
    node_pair,
    wait_for_few_threads,
    wait_until,
)
from prfaas.transport.credentials import BadCredentials, CredentialFiles, Credentials
from prfaas.transport.sockets import shut

NOW = datetime.now(UTC)


def certificate(directory: Path, name: str, identity: str, *, now: datetime = NOW, days: int = 1) -> None:
    """Reissue the files of `name` by the authority in `directory`."""
    serial = x509.random_serial_number()
    pair = issue(read_authority(directory), name, identity, now=now, days=days, key=new_key(), serial=serial)
    write_pair(directory, name, pair)


def send(pair: NodePair, name: str, num_tokens: int = 2000) -> bytes:
    """Stage a random image and close it."""
    memory = pair.stage_open(name, pair.reserve(name, num_tokens))
    memory[:] = random.Random(name).randbytes(len(memory))
    pair.source.staged(name, [(0, len(memory))])
    pair.source.stage_close(name)
    return bytes(memory)


def descriptors() -> int:
    """Open in this process."""
    return len(os.listdir("/proc/self/fd"))


def stranger(directory: Path) -> None:
    """`source` shows a certificate of an authority that `sink` does not know."""
    authority = make_authority("other", now=NOW, days=1, key=new_key(), serial=1)
    write_pair(directory, "source", issue(authority, "source", "source", now=NOW, days=1, key=new_key(), serial=2))


def self_signed(directory: Path) -> None:
    """`source` signed its own."""
    key = new_key()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "source")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 7, NOW - timedelta(1), NOW + timedelta(1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("source")]), critical=False)
    write_pair(directory, "source", Pair(builder.sign(key, hashes.SHA256()), key))


def expired(directory: Path) -> None:
    """`source` forgot to renew."""
    certificate(directory, "source", "source", now=NOW - timedelta(days=3), days=1)


def other_cluster(directory: Path) -> None:
    """`source` has a valid certificate, of another cluster."""
    certificate(directory, "source", "elsewhere")


def impostor(directory: Path) -> None:
    """Whoever answers at the sink's address has a valid certificate, of another cluster."""
    certificate(directory, "sink", "elsewhere")


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "stranger": (stranger, "tls: "),
    "self_signed": (self_signed, "tls: "),
    "expired": (expired, "expired"),
    "other_cluster": (other_cluster, "wrong_identity"),
    "impostor": (impostor, "wrong_identity"),
}


@pytest.mark.parametrize("case", BAD)
def test_no_lane_without_the_right_certificate(tmp_path: Path, case: str) -> None:
    """Nothing comes up, both sides can say why, attempts leave nothing behind, and a good certificate mends it."""
    credentials = issue_credentials(tmp_path)
    spoil, reason = BAD[case]
    spoil(tmp_path)
    with node_pair(tmp_path, kind="tcp+tls", credentials=credentials) as pair:
        link = pair.source.links["sink"]
        wait_until(lambda: reason in (link.refusal or ""))
        wait_until(lambda: len(pair.sockets) > 12)
        before = descriptors()
        wait_until(lambda: len(pair.sockets) > 40)
        assert descriptors() <= before + 8
        assert link.lanes_up == 0
        certificate(tmp_path, "source", "source")
        certificate(tmp_path, "sink", "sink")
        wait_until(lambda: link.lanes_up == FAST_LIMITS.num_lanes)
        image = send(pair, "a")
        pair.wait_state("a", "landed")
        assert pair.landed_bytes("a") == image


def test_encrypted_and_plain_do_not_meet(tmp_path: Path) -> None:
    """Neither falls back to what the other speaks, and both name the setting."""
    credentials = issue_credentials(tmp_path)
    with node_pair(tmp_path, kind="tcp", credentials={"source": credentials["source"]}) as pair:
        wait_until(lambda: pair.sink.plane.counters["frames_rejected", "bad_magic"] > 0)
        assert pair.source.links["sink"].lanes_up == 0
    with node_pair(tmp_path, kind="tcp", credentials={"sink": credentials["sink"]}) as pair:
        wait_until(lambda: pair.sink.plane.counters["frames_rejected", "tls"] > 0)
        assert pair.source.links["sink"].lanes_up == 0


def test_certificates_change_under_load(tmp_path: Path) -> None:
    """Both ends get new certificates while transfers run: every lane is renewed, and every transfer lands."""
    credentials = issue_credentials(tmp_path)
    with node_pair(tmp_path, kind="tcp+tls", credentials=credentials, arena_bytes=64 << 20) as pair:
        link = pair.source.links["sink"]
        wait_until(lambda: link.lanes_up == FAST_LIMITS.num_lanes)
        first = set(pair.sockets)
        sent = 0
        certificate(tmp_path, "sink", "sink")
        certificate(tmp_path, "source", "source")

        def renewed() -> bool:
            nonlocal sent
            image = send(pair, f"x{sent}")
            assert pair.wait_state(f"x{sent}", "landed", "aborted") == "landed"
            assert pair.landed_bytes(f"x{sent}") == image
            pair.sink.drop(f"x{sent}")
            sent += 1
            version = pair.source.plane.security.credentials.version  # type: ignore[union-attr]
            lanes = [lane for lane in link.lanes if lane.is_up and lane.credentials_version == version]
            return version > 0 and len(lanes) == FAST_LIMITS.num_lanes

        wait_until(renewed)
        assert all(sock.fileno() == -1 for sock in first), "the lanes of the old certificate are closed"
        assert pair.source.plane.counters["bytes_resent", "sink"] == 0


def test_a_certificate_that_ends_ends_its_lanes(tmp_path: Path) -> None:
    """A lane does not outlive what it was trusted for; a renewed certificate brings it back."""
    credentials = issue_credentials(tmp_path)
    with node_pair(tmp_path, kind="tcp+tls", credentials=credentials) as pair:
        link = pair.source.links["sink"]
        wait_until(lambda: link.lanes_up == FAST_LIMITS.num_lanes)
        for lane in link.lanes:
            assert lane._peer is not None
            lane._peer = dataclasses.replace(lane._peer, not_after_s=0.0)
        old = set(pair.sockets)
        wait_until(lambda: all(sock.fileno() == -1 for sock in old))
        wait_until(lambda: link.lanes_up == FAST_LIMITS.num_lanes)


def test_half_written_files_leave_the_last_good_certificate(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Key and certificate of different pairs are told once and not used."""
    files = issue_credentials(tmp_path)["source"]
    credentials = Credentials(files)
    context = credentials.context(dialer=True)
    Path(files.key).write_bytes(Path(issue_credentials(tmp_path / "b")["source"].key).read_bytes())
    for _ in range(3):
        credentials.reload()
    assert credentials.context(dialer=True) is context
    assert credentials.version == 0
    assert len([record for record in caplog.records if "last certificate that was good" in record.message]) == 1
    Path(files.cert).unlink()
    credentials.reload()
    certificate(tmp_path, "source", "source")
    credentials.reload()
    assert credentials.version == 1


@pytest.mark.parametrize("field", ["ca", "cert", "key"])
@pytest.mark.parametrize("content", [None, b"", b"-----BEGIN CERTIFICATE-----\nrubbish\n"])
def test_unusable_files_are_named(tmp_path: Path, field: str, content: bytes | None) -> None:
    """Missing, empty or damaged: the error says which file."""
    files = issue_credentials(tmp_path)["source"]
    bad = tmp_path / "bad.pem"
    if content is not None:
        bad.write_bytes(content)
    with pytest.raises(BadCredentials, match=r"bad\.pem"):
        Credentials(dataclasses.replace(files, **{field: str(bad)}))


class Recorder:
    """A dialer that keeps what each connection sent. The first to dial may be the last whose handshake is through: what
    has landed came over the one that sent most."""

    def __init__(self, dial: Callable[[], socket.socket]) -> None:
        self.dial = dial
        self.connections: list[list[bytes]] = []

    def sent(self) -> list[bytes]:
        """Of the connection that has sent most so far, in the pieces in which it came."""
        return list(max(self.connections, key=lambda pieces: sum(map(len, pieces))))

    def __call__(self) -> socket.socket:
        upstream = self.dial()
        ours, theirs = socket.socketpair()
        pieces: list[bytes] = []
        self.connections.append(pieces)

        def pump(source: socket.socket, target: socket.socket, keep: bool) -> None:
            try:
                while data := source.recv(65536):
                    if keep:
                        pieces.append(data)
                    target.sendall(data)
            except OSError:
                pass
            shut(source)
            shut(target)

        threading.Thread(target=pump, args=(theirs, upstream, True), daemon=True).start()
        threading.Thread(target=pump, args=(upstream, theirs, False), daemon=True).start()
        return ours


def test_a_replayed_handshake_opens_nothing(tmp_path: Path) -> None:
    """Everything that a real lane once sent, sent again on a new connection: refused, and nothing of it is written."""
    recorders: list[Recorder] = []

    def recording(dial: Callable[[], socket.socket]) -> Callable[[], socket.socket]:
        if not recorders:
            recorders.append(Recorder(dial))
        return recorders[0]

    with node_pair(tmp_path, kind="tcp+tls", wrap_dial=recording) as pair:
        image = send(pair, "a")
        pair.wait_state("a", "landed")
        rejected = pair.sink.plane.counters["frames_rejected", "tls"]
        received = pair.sink.plane.counters["bytes_received", "source"]
        sent = recorders[0].sent()
        assert len(sent) > 2, "a greeting, the answer to the other side's, and what came after"
        for cut in (None, 1, 2):
            with socket.create_connection(pair.sink.inbound.address) as sock:
                sock.settimeout(30)
                try:
                    for data in sent[:cut]:
                        sock.sendall(data)
                    sock.shutdown(socket.SHUT_WR)
                    while sock.recv(65536):
                        pass
                except ConnectionError:
                    pass
        wait_until(lambda: pair.sink.plane.counters["frames_rejected", "tls"] > rejected)
        assert pair.sink.plane.counters["bytes_received", "source"] == received
        assert pair.landed_bytes("a") == image


def test_nothing_is_readable_on_the_wire(tmp_path: Path) -> None:
    """Neither KV nor names nor tokens of landings appear in what a lane sends."""
    recorders: list[Recorder] = []

    def recording(dial: Callable[[], socket.socket]) -> Callable[[], socket.socket]:
        if not recorders:
            recorders.append(Recorder(dial))
        return recorders[0]

    limits = dataclasses.replace(FAST_LIMITS, num_lanes=1)
    with node_pair(tmp_path, kind="tcp+tls", wrap_dial=recording, limits=limits) as pair:
        reservation = pair.reserve("transfer-seven", 2000)
        memory = pair.stage_open("transfer-seven", reservation)
        memory[:] = (b"the prompt in another form " * (len(memory) // 27 + 1))[: len(memory)]
        pair.source.staged("transfer-seven", [(0, len(memory))])
        pair.wait_state("transfer-seven", "landed")
        wire = b"".join(recorders[0].sent())
        assert len(wire) > len(memory)
        for secret in (b"the prompt", b"transfer-seven", reservation.token.encode(), b"sha256"):
            assert secret not in wire


def test_garbage_in_place_of_a_handshake(tmp_path: Path) -> None:
    """Thousands of broken greetings cost an encrypted node nothing, and good peers still get through."""
    rng = random.Random(3)
    good = LaneProtocol(dialer=True).send_message(Hello("n", "b", "sink", 0, "sha256", "prfaas", ""))
    with node_pair(tmp_path, kind="tcp+tls") as pair:
        wait_until(lambda: pair.source.links["sink"].lanes_up == FAST_LIMITS.num_lanes)
        at_rest = threading.active_count()

        def throw(count: int) -> None:
            for index in range(count):
                with socket.create_connection(pair.sink.inbound.address) as sock:
                    record = b"\x16\x03\x01" + rng.randrange(1 << 16).to_bytes(2, "big") + rng.randbytes(300)
                    sock.sendall(rng.choice([rng.randbytes(100), good, record, b"\x16\x03\x03\xff\xff"]))
                if index % 50 == 49:
                    wait_for_few_threads(at_rest + 20)

        throw(2000)
        wait_for_few_threads(at_rest + 20)
        image = send(pair, "a")
        pair.wait_state("a", "landed")
        assert pair.landed_bytes("a") == image


def test_files_of_the_type_are_what_they_say(tmp_path: Path) -> None:
    """The same files serve both ends of a lane."""
    files = issue_credentials(tmp_path)["sink"]
    assert isinstance(files, CredentialFiles)
    assert Credentials(files).identities == {"sink"}
