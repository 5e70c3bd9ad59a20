"""Connections of clients, before and around their requests: what each may cost, and how many there may be."""
