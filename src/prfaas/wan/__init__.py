"""`prfaas wan`: a wide-area network in user space, through which lanes between clusters run on one machine."""
