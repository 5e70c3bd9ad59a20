"""What crosses between processes, without I/O: frames, lane states and seals between nodes; an engine's messages."""
