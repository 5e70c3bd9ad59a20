"""Model and hardware profiles: the files that are shipped, and reading them and those that `prfaas profile` writes."""
