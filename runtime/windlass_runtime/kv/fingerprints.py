"""Names of page contents: who may find a page, and after which tokens.

A page's keys and values follow from every token up to its end, from the model and from the page format. Its fingerprint
is a keyed hash of that history, chained page by page; equal fingerprints mean equal bytes. The key is the scope, which
the server derives from a secret of its own and the tenant it has authenticated, so nobody can name, guess or find a
page of another scope: no field of a request takes part.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Sequence
from typing import Final

FINGERPRINT_BYTES: Final = 16
_PURPOSE: Final = b"windlass prefix pages 1"


def derive_scope(server_key: bytes, namespace: str, identity: str = "") -> bytes:
    """The secret under which a namespace's pages are named: 32 bytes.

    server_key  secret of the replica, or of all replicas that exchange pages; at least 16 bytes
    namespace   the tenant, or the name of a namespace that a policy lets several tenants share
    identity    what else decides the bytes of a page: model, recipe, page format
    """
    if len(server_key) < 16:
        raise ValueError(f"server key: expected at least 16 bytes, found {len(server_key)}")
    # Each part is preceded by its length, so that no two pairs read the same.
    parts = b"".join(struct.pack("<I", len(part)) + part for part in (namespace.encode(), identity.encode()))
    return hmac.digest(server_key, _PURPOSE + parts, "sha256")


class PrefixChain:
    """Fingerprints of one sequence's full pages, each computed once. The sequence's tokens may only grow."""

    def __init__(self, scope: bytes, page_tokens: int) -> None:
        self.page_tokens = page_tokens
        self._scope = scope
        self._pack = struct.Struct(f"<{page_tokens}I").pack
        self._known: list[bytes] = []

    def first(self, tokens: Sequence[int], pages: int) -> list[bytes]:
        """Fingerprints of the first `pages` pages; `tokens` are all of the sequence's, and fill them."""
        known, size = self._known, self.page_tokens
        while len(known) < pages:
            start = len(known) * size
            before = known[-1] if known else b""
            content = before + self._pack(*tokens[start : start + size])
            known.append(hashlib.blake2b(content, key=self._scope, digest_size=FINGERPRINT_BYTES).digest())
        return known[:pages]
