"""How much of a transfer hides behind the prefill that makes it."""
