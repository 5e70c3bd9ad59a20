"""`prfaas bench`: measure this machine with the code that serves."""
