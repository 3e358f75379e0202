"""edgetl: transfer learning for edge devices. The library: everything that learns."""

__version__ = "0.1.0"
