"""`prfaas profile`: measures how fast a live endpoint prefills and decodes, and writes a hardware profile."""
