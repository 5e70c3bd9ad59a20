"""Names of cached blocks, and what one engine is known to hold."""
