"""The other side: engines and KV nodes over HTTP."""
