"""`prfaas up`: start what a deployment file describes on this machine."""
