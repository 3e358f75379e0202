"""Everything that edgetl raises on purpose.

A message says what was wrong, what was received and what to do next, in one line. Commands print it
and end with exit status 2; notebooks catch `EdgetlError`.
"""


class EdgetlError(Exception):
    """Base class of every error that edgetl raises on purpose."""


class ConfigError(EdgetlError):
    """A setting has a value that can't work."""


class DatasetError(EdgetlError):
    """The labelled examples can't be used as they are."""


class UnreadableImageError(DatasetError):
    """One file is not an image that can be decoded."""


class BackboneError(EdgetlError):
    """The backbone is unknown, or does not fit the input."""


class WeightsError(EdgetlError):
    """Pretrained weights are missing, damaged, unsafe or of other shapes."""


class RunError(EdgetlError):
    """A run directory is missing, unfinished, damaged, in use, or belongs to another experiment."""


class CacheError(EdgetlError):
    """What an earlier step has stored is gone or damaged while it is needed."""


class DiskSpaceError(EdgetlError):
    """There is no room on a disk now; the same command may find some later."""


class ArtifactError(EdgetlError):
    """A .tflite file can't be made, is damaged, or breaks the input contract."""
