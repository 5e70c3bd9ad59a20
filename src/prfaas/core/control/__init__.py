"""Decisions of the control plane: where a request goes, and what each decode engine already holds."""
