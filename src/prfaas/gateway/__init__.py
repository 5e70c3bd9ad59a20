"""The OpenAI front door: counts a prompt's tokens, routes it, and drives prefill, transfer and decode."""
