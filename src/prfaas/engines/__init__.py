"""Engines that PrfaaS can drive, and what every kind of them needs. Kinds do not know each other; `kinds` knows all."""
