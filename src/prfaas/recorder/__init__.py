"""`prfaas record`: a gateway's requests as a trace."""
