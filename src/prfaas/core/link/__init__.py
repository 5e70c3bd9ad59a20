"""One link between two nodes: what it carries, how it is doing, how fast to send."""
