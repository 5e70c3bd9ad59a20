"""The KV node: one process per engine host, owner of the arena, the landings and the lanes."""
