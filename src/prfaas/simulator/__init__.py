"""`prfaas simulate`: a deployment file under a load, through the scheduler that ships."""
