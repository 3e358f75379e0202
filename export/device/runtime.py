"""Which TFLite interpreter this machine has."""

from __future__ import annotations

import functools
import importlib
import platform
from dataclasses import dataclass
from importlib import metadata
from operator import attrgetter
from types import ModuleType
from typing import Any

from .errors import DeviceError

RUNTIMES = (
    ("ai-edge-litert", "ai_edge_litert.interpreter", "Interpreter", "OpResolverType"),
    ("tflite-runtime", "tflite_runtime.interpreter", "Interpreter", "OpResolverType"),
    ("tensorflow", "tensorflow", "lite.Interpreter", "lite.experimental.OpResolverType"),
)
"""(package, module, interpreter in it, kernel choice in it), best first. Only the last costs seconds to import."""


@dataclass(frozen=True)
class Runtime:
    """An interpreter that can be imported."""

    name: str
    """Package and version, such as `ai-edge-litert 2.3.0`."""
    interpreter: Any
    """The class."""
    resolvers: Any
    """The enumeration OpResolverType."""


@functools.lru_cache(maxsize=None)
def find_runtime() -> Runtime:
    """Import the best interpreter that is installed.

    Returns:
        The first of RUNTIMES that imports; the same one for the life of the process.

    Raises:
        DeviceError: none imports; names the package to install here, and why an installed one failed.
    """
    broken = []
    for package, name, interpreter, resolvers in RUNTIMES:
        try:
            module = importlib.import_module(name)
            found = attrgetter(interpreter)(module), attrgetter(resolvers)(module)
            return Runtime(f"{package} {_version(package, module)}", *found)
        except ModuleNotFoundError as error:
            if error.name not in (name, name.split(".")[0]):  # it is here, but something that it needs is not
                broken.append(f"{package}: {error}")
        except (ImportError, AttributeError, OSError) as error:  # wrong libc, wrong numpy, a library is missing
            broken.append(f"{package}: {error}")
    reasons = f" ({'; '.join(broken)})" if broken else ""
    raise DeviceError(" ".join(f"no TFLite interpreter can be imported{reasons}. {advice()}".split()))


def _version(package: str, module: ModuleType) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # a variant under another name, such as tensorflow-cpu
        return str(getattr(module, "__version__", "(version unknown)"))


def advice() -> str:
    """What to install here, where there is no interpreter."""
    if platform.machine().startswith(("armv6", "armv7")):  # ai-edge-litert has no 32-bit wheels
        return "Install with: pip install tflite-runtime 'numpy<2' (Python 3.11 or older)"
    return "Install with: pip install ai-edge-litert"
