"""A run becomes edge artifacts, and evidence that they work."""
