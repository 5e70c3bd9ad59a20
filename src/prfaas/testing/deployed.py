"""Processes of a deployment file on this machine, started by their own commands, and what tests ask of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import yaml

from prfaas.core.topology import Instance, Topology
from prfaas.deployment.load import load_deployment, resolve_model_dir
from prfaas.deployment.topology import topology_of
from prfaas.launch.addresses import free_ports as free_ports  # tests ask here for them
from prfaas.launch.certificates import make_throwaway
from prfaas.launch.plan import ProcessSpec, plan_processes, throwaway_directory
from prfaas.launch.supervisor import Supervisor
from prfaas.testing.node_pair import wait_until

START_TIMEOUT_S = 600.0


class HttpError(Exception):
    """A response that is not 2xx; `status` and the decoded `body`."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(f"HTTP {status}: {body}")
        self.status = status
        self.body = body


def http(url: str, body: Any = None, method: str | None = None, timeout_s: float = 120.0) -> tuple[Any, dict[str, str]]:
    """JSON in, (JSON or text, headers) out. Raises HttpError."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            return _decode(response.read()), dict(response.headers)
    except urllib.error.HTTPError as error:
        with error:
            raise HttpError(error.code, _decode(error.read())) from None


def _decode(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return raw.decode(errors="replace")


def endpoint(ports: list[int], **more: str) -> dict[str, str]:
    """One of a deployment file on this machine: ports of engine, node and lanes."""
    engine, node, lanes = ports
    addresses = {
        "engine": f"http://127.0.0.1:{engine}",
        "kvnode": f"http://127.0.0.1:{node}",
        "lanes": f"127.0.0.1:{lanes}",
    }
    return {**more, **addresses}


class Deployed:
    """`document` is the file's content, and may be changed: see `rewrite`. Subclasses say with `wait_ready` when all is
    up. Use as a context manager."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="prfaas-"))
        self.file = self.directory / "deployment.yaml"
        self.document = document
        self.write(yaml.safe_dump(document))
        self.gateway = f"http://127.0.0.1:{document['gateway']['port']}"
        self.specs = self.plan()
        self.supervisor = Supervisor(self.directory / "logs")

    def plan(self) -> dict[str, ProcessSpec]:
        """What belongs to the file as it is now, with certificates made."""
        deployment = load_deployment(self.file)
        model_dir = resolve_model_dir(deployment, self.file)
        planned = plan_processes(deployment, self.file, model_dir, self.directory)
        make_throwaway(deployment, throwaway_directory(self.directory))
        return {spec.name: spec for spec in planned}

    def __enter__(self) -> Self:
        try:
            self.supervisor.start(list(self.specs.values()))
            self.supervisor.wait_healthy(START_TIMEOUT_S)
            self.wait_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End every process and remove the files."""
        self.supervisor.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def wait_ready(self) -> None:
        """Wait until everything works."""
        raise NotImplementedError

    def write(self, text: str) -> None:
        """Put a whole file in the place of the old one."""
        unfinished = self.file.with_suffix(".new")
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(self.file)

    def rewrite(self) -> None:
        """Write the document, and have the gateway read it now. The nodes see it within two seconds."""
        self.write(yaml.safe_dump(self.document))
        self.hang_up()

    def hang_up(self) -> None:
        """SIGHUP to the gateway."""
        os.kill(self.supervisor.processes["gateway"].pid, signal.SIGHUP)

    @property
    def topology(self) -> Topology:
        """Of the file as it is."""
        return topology_of(load_deployment(self.file))

    def instance(self, name: str) -> Instance:
        """Raises KeyError."""
        return self.topology.instance(name)

    def kill(self, name: str) -> None:
        """kill -9, children and all, and wait until it is gone."""
        running = self.supervisor.processes[name]
        running.ended_told = True
        os.killpg(running.pid, signal.SIGKILL)
        running.popen.wait(30)

    def end(self, name: str) -> int:
        """SIGTERM; the status with which it ended."""
        running = self.supervisor.processes[name]
        running.ended_told = True
        running.popen.terminate()
        return running.popen.wait(60)

    def restart(self, name: str) -> None:
        """Start a process that was killed again, and wait until everything works."""
        self.supervisor.processes[name].popen.wait(30)
        self.supervisor.start([self.specs[name]])
        self.supervisor.wait_healthy(START_TIMEOUT_S)
        self.wait_ready()

    def log(self, name: str) -> str:
        return (self.directory / "logs" / f"{name}.log").read_text(errors="replace")

    def story_of(self, request_id: str | None) -> dict[str, Any]:
        """The gateway's finished story of a request."""

        def finished() -> dict[str, Any] | None:
            story, _ = http(f"{self.gateway}/prfaas/requests/{request_id}")
            return story if story.get("closed") else None

        return wait_until(finished, 30.0)

    def metric(self, url: str, name: str, **labels: str) -> float:
        """Sum of a Prometheus sample over everything that carries `labels`."""
        text, _ = http(f"{url}/metrics")
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        lines = [line for line in str(text).splitlines() if line.startswith((f"{name}{{", f"{name} "))]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if all(label in line for label in wanted))

    def members(self) -> dict[str, dict[str, Any]]:
        """Instances as the gateway lists them in its health."""
        try:
            health, _ = http(f"{self.gateway}/health")
        except HttpError as unhealthy:
            health = unhealthy.body
        return dict(health["instances"])

    def held(self) -> dict[str, float]:
        """What gateway and nodes hold of requests: empty when idle. A node that is down holds nothing."""
        held = {"in flight": self.metric(self.gateway, "prfaas_inflight_requests")}
        for name, member in self.members().items():
            held |= {f"{name} {what}": member[what] for what in ("inflight", "landings")}
        for instance in self.topology.instances:
            try:
                health, _ = http(f"{instance.kvnode_url}/health", timeout_s=5)
                held[f"{instance.name} landings"] = self.metric(instance.kvnode_url, "prfaas_landings")
            except OSError:
                continue
            held[f"{instance.name} arena"] = health["arena_bytes"] - health["arena_free_bytes"]
        return {name: value for name, value in held.items() if value}

    def wait_nothing_held(self, timeout_s: float = 60.0) -> None:
        """Wait until neither gateway nor nodes hold anything; the error names what is."""
        try:
            wait_until(lambda: not self.held(), timeout_s)
        except TimeoutError:
            raise AssertionError(f"still held: {self.held()}") from None


def port_of(url: str) -> int:
    """Of an address with one."""
    port = urlsplit(url).port
    assert port is not None, url
    return port
