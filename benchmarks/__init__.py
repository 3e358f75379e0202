"""Speed of our own code, as ratios measured in one run."""
