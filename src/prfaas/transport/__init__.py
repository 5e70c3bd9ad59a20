"""Lanes between KV nodes: threads and sockets around the sans-IO protocol of `core.wire`, and the shared arena."""
