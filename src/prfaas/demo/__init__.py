"""`prfaas demo`: two datacenters on one machine, and the proof that they work."""
