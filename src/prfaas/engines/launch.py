"""How an engine is started beside a KV node: values in, a command line and its environment out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class EngineStart:
    """One engine to start: the instance `name` of `deployment_file`. `socket_path` is where the node beside it listens;
    `args` and `env` are the deployment file's, and win."""

    name: str
    deployment_file: str
    model_dir: str
    served_name: str
    max_model_tokens: int
    host: str
    port: int
    socket_path: str
    args: tuple[str, ...]
    env: Mapping[str, str]


class Launch(Protocol):
    """One kind of engine. `product` is its name for people, `package` what must be installed to start it.
    `shares_process`: one process is all engines of a cluster."""

    @property
    def product(self) -> str: ...

    @property
    def package(self) -> str: ...

    @property
    def shares_process(self) -> bool: ...

    def argv(self, starts: Sequence[EngineStart], python: str) -> tuple[str, ...]:
        """The command line of one process; `python` is the interpreter. Of several only where they share one."""

    def env(self, start: EngineStart) -> dict[str, str]:
        """What is added to the environment."""
