"""Where the API server is and how to prove who we are: in-cluster service account or kubeconfig.


Tokens rotate and exec plugins issue short ones: whoever holds an Access loads it anew when the server answers 401.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from windlass_operator import errors

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
LOAD_TIMEOUT_S = 60.0
"""An exec plugin may ask an identity provider; longer than this is a hang."""


@dataclass(frozen=True, slots=True)
class Access:
    """One API server and one way to authenticate. Files stay on disk while the process lives."""

    server: str
    source: str
    """Where this came from, in words for error messages."""
    authorization: str = ""
    """Value of the Authorization header; empty with client certificates."""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    verify: bool = True
    server_hostname: str = ""
    """Name expected in the server's certificate where it differs from the URL."""
    proxy: str = ""

    def ssl_context(self) -> ssl.SSLContext:
        """Return the TLS settings. Raises ClusterUnavailable for unreadable certificates."""
        try:
            context = ssl.create_default_context(cafile=self.ca_file or None)
            if self.cert_file:
                context.load_cert_chain(self.cert_file, self.key_file or None)
        except (OSError, ssl.SSLError) as exc:
            raise errors.ClusterUnavailable(f"{self.source}: certificates cannot be used: {exc}") from exc
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


AccessLoader = Callable[[], Awaitable[Access]]


def access_loader(kubeconfig: str, context: str = "", service_account: Path = SERVICE_ACCOUNT) -> AccessLoader:
    """Return a function that reads the access: `kubeconfig` when given, else the pod's own, else the default file.

    context  of the kubeconfig; empty takes its current one. With a context, the pod's own access is not looked for.
    """

    async def load() -> Access:
        try:
            async with asyncio.timeout(LOAD_TIMEOUT_S):
                if not (kubeconfig or context) and (service_account / "token").is_file():
                    return await asyncio.to_thread(_load_in_cluster)
                return await _load_kubeconfig(kubeconfig, context)
        except TimeoutError as exc:
            raise errors.ClusterUnavailable(
                f"{kubeconfig or 'kubeconfig'}: expected credentials within {LOAD_TIMEOUT_S:.0f} s, "
                "found a login that hangs"
            ) from exc

    return load


def _load_in_cluster() -> Access:
    from kubernetes.aio import config

    configuration = _empty_configuration()
    try:
        config.load_incluster_config(  # type: ignore[no-untyped-call]
            client_configuration=configuration, try_refresh_token=False
        )
    except (config.ConfigException, OSError) as exc:
        raise errors.ClusterUnavailable(f"service account of this pod: {exc}") from exc
    return _from_configuration(configuration, "service account of this pod")


async def _load_kubeconfig(path: str, context: str) -> Access:
    import yaml
    from kubernetes.aio import config

    configuration, source = _empty_configuration(), f"kubeconfig {path}" if path else "default kubeconfig"
    if path and not await asyncio.to_thread(_all_files, path):
        raise errors.ClusterUnavailable(f"{source}: expected a file, found none")
    try:
        await config.load_kube_config(  # type: ignore[no-untyped-call]
            config_file=path or None,
            context=context or None,
            client_configuration=configuration,
            persist_config=False,
        )
    except (yaml.YAMLError, AttributeError, TypeError, ValueError) as exc:
        raise errors.ClusterUnavailable(f"{source}: expected a kubeconfig, found a file that is none: {exc}") from exc
    except (config.ConfigException, OSError) as exc:
        hint = "" if path else "; name one with --kubeconfig or KUBECONFIG, or run inside a cluster"
        raise errors.ClusterUnavailable(f"{source}: {exc}{hint}") from exc
    return _from_configuration(configuration, source)


def _all_files(paths: str) -> bool:
    return all(os.path.isfile(path) for path in paths.split(os.pathsep) if path)


def _empty_configuration() -> Any:
    # The client import costs about half a second and 40 MB; only a process that talks to a cluster pays it.
    from kubernetes.aio.client import Configuration

    return type.__call__(Configuration)  # past the metaclass that would hand out a shared default


def _from_configuration(configuration: Any, source: str) -> Access:
    authorization = configuration.api_key.get("BearerToken") or ""
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() == "bearer":
        authorization = f"Bearer {credentials.strip()}"
    return Access(
        server=configuration.host.rstrip("/"),
        source=source,
        authorization=authorization,
        ca_file=configuration.ssl_ca_cert or "",
        cert_file=configuration.cert_file or "",
        key_file=configuration.key_file or "",
        verify=configuration.verify_ssl is not False,
        server_hostname=configuration.tls_server_name or "",
        proxy=configuration.proxy or "",
    )
