"""Seals: how a JSON file that nothing else vouches for proves that it is whole. Devices need it too.

A flipped bit that makes another digit of one is as good JSON as before.
"""

import hashlib
import re

_END = "\n}\n"
_SEAL = re.compile(rb',\n  "seal": "([0-9a-f]{64})"\n}\n\Z')


def sealed(text: str) -> str:
    """Add a last field, `seal`, to a JSON object as `edgetl.config.to_json` writes it: the sha256 of all before it."""
    body = text.removesuffix(_END)
    return f'{body},\n  "seal": "{hashlib.sha256(body.encode()).hexdigest()}"{_END}'


def unsealed(content: bytes) -> bytes:
    """Check a seal and take it off. A file without one is older than seals; a damaged one is no field of any file.

    Raises:
        ValueError: what stands before the seal was changed.
    """
    if not (found := _SEAL.search(content)):
        return content
    body = content[: found.start()]
    if hashlib.sha256(body).hexdigest() != found[1].decode():
        raise ValueError("its seal is broken")
    return body + _END.encode()
