"""How an engine is started beside a KV node: values in, a command line and its environment out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class EngineStart:
    """One engine to start. `socket_path` is where the node beside it listens; `args` and `env` are the deployment
    file's, and win."""

    model_dir: str
    served_name: str
    max_model_tokens: int
    host: str
    port: int
    socket_path: str
    args: tuple[str, ...]
    env: Mapping[str, str]


class Launch(Protocol):
    """One kind of engine. `product` is its name for people, `package` what must be installed to start it."""

    @property
    def product(self) -> str: ...

    @property
    def package(self) -> str: ...

    def argv(self, start: EngineStart, python: str) -> tuple[str, ...]:
        """The command line; `python` is the interpreter."""

    def env(self, start: EngineStart) -> dict[str, str]:
        """What is added to the environment."""
