"""Engines without a model: real requests, real KVCache bytes that can be checked, and time from a hardware profile."""
