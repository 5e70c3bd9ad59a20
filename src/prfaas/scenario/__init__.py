"""A deployment file as the planner's scenario, and as the policy that a gateway serves."""
