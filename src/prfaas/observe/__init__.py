"""What can be seen of a running system: metrics, and the story of a request."""
