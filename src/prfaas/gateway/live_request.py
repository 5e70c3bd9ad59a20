"""One client's request while it is served: what only the shell knows of it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from prfaas.core.control.events import AnswerEnded, PromptCounted, PromptUncountable
from prfaas.core.wire.node_api import Reserved
from prfaas.gateway.api.http import Response
from prfaas.gateway.api.openai import ApiRequest
from prfaas.gateway.api.streaming import EventStream
from prfaas.gateway.api.urgency import Urgency
from prfaas.gateway.prompt.prompt_tokens import PromptTokens
from prfaas.gateway.tracing import RequestTracing
from prfaas.gateway.upstream.params import OffloadSpec

#: Work that the client's own task does, so that it stops when the client leaves.
Work = Coroutine[Any, Any, None]


@dataclass(eq=False, slots=True)
class LiveRequest:
    """`work` is what the client's task shall do next; it waits on `woken` while there is none. `spec` and `landing` are
    of the transfer, if there is one, `node_url` is where its landing was asked for. `proven` is set when the landing's
    final record has come or will not come. `late_count` counts the prompt after its answer."""

    request_id: str
    request: ApiRequest
    response: Response
    stream: EventStream | None
    tracing: RequestTracing
    prompt: PromptTokens
    urgency: Urgency
    work: Work | None = None
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    ended: AnswerEnded | None = None
    late_count: Coroutine[Any, Any, PromptCounted | PromptUncountable] | None = None
    spec: OffloadSpec | None = None
    node_url: str = ""
    landing: Reserved | None = None
    prefilling: asyncio.Task[Any] | None = None
    watching: asyncio.Task[Any] | None = None
    proven: asyncio.Event = field(default_factory=asyncio.Event)

    def do(self, work: Work) -> None:
        """Have the client's task do this next."""
        assert self.work is None, "the client's task does one thing at a time"
        self.work = work
        self.woken.set()
