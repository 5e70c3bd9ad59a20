"""How a gateway learns which instances there are while it runs."""
