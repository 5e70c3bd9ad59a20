"""`prfaas bench e2e`: a load against any OpenAI-compatible server, and what its clients wait for."""
