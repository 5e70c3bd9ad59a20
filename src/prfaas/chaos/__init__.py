"""`prfaas chaos`: faults on purpose in a running deployment, and a ledger that accounts for every request."""
