"""Both halves of a transfer's ledger: what is sent, over which lanes, and where it lands."""
