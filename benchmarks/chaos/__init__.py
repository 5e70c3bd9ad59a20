"""Faults on purpose: by many seeds, and by name."""
