"""The fast timescale in the simulator: under load, when things change, beside other policies; and its pictures."""
