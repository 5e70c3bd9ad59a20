"""Public fakes and helpers: node pairs, engines, tiny models."""
