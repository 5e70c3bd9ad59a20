"""A fake engine as cheap as Python allows: `EVENTS` server-sent events per request. `python -m … PORT GAP_S`."""

from __future__ import annotations

import asyncio
import sys
from typing import Any, Final

import uvicorn

EVENTS: Final = 64
GAP_S: Final = float(sys.argv[2]) if len(sys.argv) == 3 else 0.0
_CHUNK: Final = (
    b'data: {"id":"cmpl-0","object":"text_completion","created":0,"model":"tiny","choices":[{"index":0,"text":" token",'
    b'"logprobs":null,"finish_reason":null}],"usage":null}\n\n'
)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Streams. Probes get nothing: enough from an engine, refused from a KV node, so that nothing is offloaded."""
    body = b""
    while (message := await receive())["type"] == "http.request":
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    if scope["path"] in ("/health", "/metrics", "/v1/links"):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})
        return
    headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for _ in range(EVENTS):
        await send({"type": "http.response.body", "body": _CHUNK, "more_body": True})
        # As an engine does: each token is an event of its own, and other requests get their turn in between.
        await asyncio.sleep(GAP_S)
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="error", access_log=False, lifespan="off")
