"""The simulator against closed forms, and how fast it is."""
