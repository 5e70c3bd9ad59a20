"""Who owns which bytes of a node's arena: extents, landings and their leases."""
