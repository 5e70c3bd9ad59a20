"""Other load generators beside `prfaas bench e2e`."""
