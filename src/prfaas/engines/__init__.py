"""Engines that PrfaaS can drive. Each is an independent sibling; none imports another."""
