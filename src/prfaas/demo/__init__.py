"""`prfaas demo`: two datacenters on one machine, emulated or with vLLM, and the proof that they work."""
