"""The planner: from a workload, hardware and links to the best configuration. Pure."""
