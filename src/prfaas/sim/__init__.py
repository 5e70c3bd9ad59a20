"""A simulated deployment that the shipped scheduler decides for."""
