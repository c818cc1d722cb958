"""Handshakes take the newest certificate and authority without a restart."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.certificates import Authority, Files
from windlass_operator.serve.certificates import Bundle, Renewal, issue_bundle, service_hosts
from windlass_operator.serve.tls import ServingContext, common_name_of

HOSTS = service_hosts("adapter", "system")


def new_bundle(before: Bundle | None = None) -> Bundle:
    return issue_bundle(before, Renewal.AUTHORITY, HOSTS, datetime.datetime.now(datetime.UTC))


@contextlib.asynccontextmanager
async def listening(serving: ServingContext) -> AsyncIterator[int]:
    """A server that tells each client the common name of its certificate."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"{common_name_of(writer.get_extra_info('peercert'))}\n".encode())
        with contextlib.suppress(OSError):
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=serving.listening)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def ask(port: int, bundle: Bundle, certificate: Files | None = None) -> str:
    """What the server says; empty where it refuses. Raises ssl.SSLError where the client does."""
    context = ssl.create_default_context(cadata=bundle.authority)
    if certificate is not None:
        context.load_cert_chain(certificate.certificate, certificate.key)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=HOSTS[0])
    try:
        return (await reader.readline()).decode().strip()
    except OSError:
        return ""
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_a_client_may_come_without_a_certificate_but_not_with_a_foreign_one(tmp_path: Path) -> None:
    trusted, foreign = Authority(tmp_path / "a", "proxy"), Authority(tmp_path / "b", "proxy")
    serving, bundle = ServingContext(), new_bundle()
    serving.renew(bundle, trusted.file.read_text())

    async with listening(serving) as port:
        assert await ask(port, bundle) == "None"
        assert await ask(port, bundle, trusted.client("aggregator")) == "aggregator"
        assert await ask(port, bundle, foreign.client("aggregator")) == ""


async def test_a_server_certificate_of_the_trusted_authority_does_not_make_a_client(tmp_path: Path) -> None:
    trusted = Authority(tmp_path, "proxy")
    serving, bundle = ServingContext(), new_bundle()
    serving.renew(bundle, trusted.file.read_text())

    async with listening(serving) as port:
        assert await ask(port, bundle, trusted.server("aggregator")) == ""


async def test_new_connections_meet_what_was_renewed(tmp_path: Path) -> None:
    before, after = Authority(tmp_path / "a", "proxy"), Authority(tmp_path / "b", "proxy")
    serving, first = ServingContext(), new_bundle()
    serving.renew(first, before.file.read_text())

    async with listening(serving) as port:
        second = new_bundle()
        serving.renew(second, after.file.read_text())

        with pytest.raises(ssl.SSLCertVerificationError):
            await ask(port, first)
        assert await ask(port, second, after.client("aggregator")) == "aggregator"
        assert await ask(port, second, before.client("aggregator")) == ""


async def test_the_key_leaves_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trusted = Authority(tmp_path / "a", "proxy")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))

    ServingContext().renew(new_bundle(), trusted.file.read_text())

    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("certificate", [None, {}, {"subject": ((("organizationName", "x"),),)}])
def test_without_a_name_there_is_none(certificate: dict[str, object] | None) -> None:
    assert common_name_of(certificate) is None
