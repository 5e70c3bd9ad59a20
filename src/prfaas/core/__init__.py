"""Pure decisions: no clock, I/O, environment or global randomness. Time, randomness and ids are arguments."""
