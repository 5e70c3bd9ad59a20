"""`prfaas plan`: deployment files in; tables, JSON and pictures out. core.planning decides."""
