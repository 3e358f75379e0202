"""Artifacts for microcontrollers: C sources for TensorFlow Lite Micro, and what Vela makes of them for Arm Ethos-U."""
