"""What a result *is*, as a short hash, apart from how it was computed.

``fingerprint = H(stage, version, config, inputs)``. Workers, devices, batch queues, paths and regions are
not part of it: they change how long a stage takes, not what it writes.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

LENGTH = 16  # hexadecimal digits; 64 bits: a collision among a million artifacts has odds of 3e-8


def canonical(value: object) -> Any:
    """Reduces a value to plain JSON, or refuses.

    Dataclasses become objects of their fields, except fields marked ``metadata={"identity": False}``
    (locations: what lies there enters as an input digest instead).

    Raises:
        TypeError: for anything without one obvious encoding: paths, sets, lambdas, arrays, models.
        ValueError: for a float that is not finite.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [f for f in dataclasses.fields(value) if f.metadata.get("identity", True)]
        return {f.name: canonical(getattr(value, f.name)) for f in fields}
    if isinstance(value, Mapping):
        return {_key(key): canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} cannot be part of a fingerprint: only finite numbers can")
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(
        f"{type(value).__module__}.{type(value).__qualname__} cannot be part of a fingerprint; use numbers, "
        "text, booleans, None, and lists, mappings or dataclasses of them"
    )


def _key(key: object) -> str:
    if type(key) is str:
        return key
    raise TypeError(f"mapping keys in a fingerprint are text, not {type(key).__qualname__}")


def canonical_json(value: object) -> str:
    """The one JSON text of a value: sorted keys, no spaces, ASCII."""
    return json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def fingerprint(stage: str, version: int, config: object, inputs: Mapping[str, str]) -> str:
    """Identity of what ``stage`` writes for ``config`` and ``inputs`` (name -> fingerprint or digest)."""
    identity = {"stage": stage, "version": version, "config": config, "inputs": dict(inputs)}
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:LENGTH]


def is_fingerprint(name: str) -> bool:
    """Whether a folder's name is one that ``fingerprint`` gives: other folders are not a store's."""
    return re.fullmatch(f"[0-9a-f]{{{LENGTH}}}", name) is not None


def stable_seed(*parts: str | int) -> int:
    """A 63-bit seed from a purpose and ids: equal on every machine, worker, batch and order."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
