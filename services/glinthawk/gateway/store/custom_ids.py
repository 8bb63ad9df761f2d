"""How a custom_id stands in the store, so that a million of them stay small and exact.

A short custom_id is its own key: ids that count upwards then extend the end of the index
instead of hitting all of it. A long one is kept beside a digest, and the digest is the key.
Any text JSON can carry is kept, unpaired surrogates too, hence bytes and not text.
"""

import hashlib

_MAX_SHORT_BYTES = 32
_DIGEST_BYTES = 16
_DIGEST_MARK = b"\xff"
"""No UTF-8 text has this byte, so no short custom_id can look like a digest."""


def encode_custom_id(custom_id: str) -> tuple[bytes, bytes | None]:
    """Return the key of a custom_id, and its bytes where the key is only a digest."""
    encoded = custom_id.encode("utf-8", "surrogatepass")
    if len(encoded) <= _MAX_SHORT_BYTES:
        return encoded, None
    digest = hashlib.blake2b(encoded, digest_size=_DIGEST_BYTES).digest()
    return _DIGEST_MARK + digest, encoded


def decode_custom_id(key: bytes, long_custom_id: bytes | None) -> str:
    """Return the custom_id that `encode_custom_id` was given."""
    return (key if long_custom_id is None else long_custom_id).decode("utf-8", "surrogatepass")
