"""The page of a bundle: photos and the camera, classified in the browser by the very .tflite file."""

from export.browser.page import write

__all__ = ["write"]
