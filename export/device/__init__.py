"""Runs on the device: standard library, numpy and a TFLite interpreter. Imports nothing from outside."""
