"""Identity of data that no stage wrote: the bytes of input shards and of model weights."""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import fsspec

from storage.errors import InputError
from storage.files import Folder

CACHE = ".digests.json"
BLOCK = 4 << 20  # bytes


def digest_files(urls: Sequence[str], store: Folder, workers: int = 4) -> dict[str, str]:
    """SHA-256 of each file. A file is read again only if its size or modification mark has changed.

    Raises:
        InputError: naming the first file that cannot be read.
    """
    known = _read_cache(store)
    marks = {url: _mark(url) for url in urls}
    missing = [url for url in urls if known.get(url, ["", ""])[0] != marks[url]]
    with ThreadPoolExecutor(workers) as pool:
        fresh = dict(zip(missing, pool.map(_sha256, missing), strict=True))
    if fresh:
        known |= {url: [marks[url], digest] for url, digest in fresh.items()}
        store.write(CACHE, json.dumps(known, indent=0, sort_keys=True).encode())
    return {url: known[url][1] for url in urls}


def _mark(url: str) -> str:
    """Changes when the file does: size with times or entity tag.

    A local file's ``created`` is the time its inode changed, which copying tools do not set back.
    """
    try:
        fs, path = fsspec.core.url_to_fs(url)
        facts = fs.info(path)
    except Exception as error:  # each file system has its own kinds
        raise InputError(f"cannot read '{url}' ({error}); check the path or URL in the config") from error
    stamps = [facts.get(name) for name in ("mtime", "created", "ETag", "LastModified")]
    return ":".join(str(fact) for fact in (facts.get("size"), *stamps) if fact is not None)


def _sha256(url: str) -> str:
    digest = hashlib.sha256()
    with fsspec.open(url, "rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _read_cache(store: Folder) -> dict[str, list[str]]:
    try:
        found = json.loads(store.read(CACHE))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def combined(digests: Sequence[str]) -> str:
    """One digest of several, in order."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()
