"""`prfaas certs`: a certificate authority for the nodes of a deployment, for those who have none."""
