"""The sans-IO protocol between two KV nodes: frames, messages, lane states, the sender's and the receiver's ledgers."""
