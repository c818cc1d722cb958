"""The TLS side of the API: serve with the newest certificate, ask for the API server's, check it against its authority.

Every handshake takes the context of the moment, so that a renewed certificate or a rotated authority needs no restart.
"""

from __future__ import annotations

import os
import ssl
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from windlass_operator.serve.certificates import Bundle


class ServingContext:
    """One listening context that hands each connection to the newest settings. Call `renew` before the first one."""

    def __init__(self) -> None:
        self.listening = _new_context()
        self._current = self.listening
        self.listening.sni_callback = self._choose

    def renew(self, bundle: Bundle, client_authority: str) -> None:
        """Serve with a bundle, and trust client certificates of an authority; new connections only.

        Blocks for a moment on files. Raises ssl.SSLError for texts that are no certificates.
        """
        fresh = _new_context()
        _load_certificate(fresh, bundle)
        fresh.load_verify_locations(cadata=client_authority)
        # A client without a certificate may come: it must then show a token. One with a foreign certificate may not.
        fresh.verify_mode = ssl.CERT_OPTIONAL
        if self._current is self.listening:
            _load_certificate(self.listening, bundle)
            self.listening.load_verify_locations(cadata=client_authority)
            self.listening.verify_mode = ssl.CERT_OPTIONAL
        self._current = fresh

    def _choose(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:  # noqa: ARG002
        connection.context = self._current


def common_name_of(certificate: Mapping[str, Any] | None) -> str | None:
    """Return the common name of a verified client certificate as Python describes it; None without one."""
    for part in (certificate or {}).get("subject", ()):
        for key, value in part:
            if key == "commonName":
                return str(value)
    return None


def _new_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # A resumed session would skip the check of the client's certificate.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET
    context.set_alpn_protocols(["http/1.1"])
    return context


def _load_certificate(context: ssl.SSLContext, bundle: Bundle) -> None:
    """Python reads certificates from files only; this one lives for the length of the call."""
    handle, name = tempfile.mkstemp()  # readable by its owner alone
    try:
        with os.fdopen(handle, "w") as file:
            file.write(bundle.certificate + bundle.key)
        context.load_cert_chain(name)
    finally:
        Path(name).unlink()
