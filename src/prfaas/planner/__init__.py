"""`prfaas plan`: deployment files in; tables, JSON and pictures out. What decides is in core.planning."""
