"""How long a plan takes, as a whole process."""
