"""Experiments, one per file: a Config and main(). Read them top to bottom."""
