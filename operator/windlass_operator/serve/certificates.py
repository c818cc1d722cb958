"""The adapter's own authority and serving certificate: made, judged and renewed. No clock, network or files.

All replicas serve with one certificate, which they share through a Secret. A new authority is announced together with
the ones before it until those have expired, so that a replica that has not yet seen the new certificate stays trusted.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_LIFETIME: Final = datetime.timedelta(days=730)
SERVING_LIFETIME: Final = datetime.timedelta(days=90)
RENEW_LEFT: Final = 3
"""A certificate is renewed when less than one part in this many of its lifetime is left."""
CLOCK_SKEW: Final = datetime.timedelta(minutes=10)
"""Valid from a little earlier on: the API server's clock may be behind ours."""
AUTHORITY_NAME: Final = "windlass-metrics-adapter-ca"


class Renewal(enum.Enum):
    """What a bundle needs."""

    NOTHING = "nothing"
    SERVING = "a new serving certificate"
    AUTHORITY = "a new authority"


@dataclass(frozen=True, slots=True)
class Bundle:
    """What the Secret holds, as PEM texts."""

    authority: str
    """The authority in use first, then earlier ones that have not expired: what the API server is to trust."""
    authority_key: str
    certificate: str
    key: str

    def to_data(self) -> dict[str, str]:
        """The `data` of a Secret."""
        return {name: base64.b64encode(getattr(self, field).encode()).decode() for name, field in _KEYS.items()}

    @classmethod
    def from_data(cls, data: Mapping[str, str] | None) -> Bundle | None:
        """Read the `data` of a Secret; None where a part is missing or not base64."""
        try:
            texts = {field: base64.b64decode((data or {})[name]).decode() for name, field in _KEYS.items()}
        except (KeyError, binascii.Error, ValueError):
            return None
        return cls(**texts)


_KEYS: Final = {"ca.crt": "authority", "ca.key": "authority_key", "tls.crt": "certificate", "tls.key": "key"}


def choose_renewal(bundle: Bundle | None, hosts: Sequence[str], now: datetime.datetime) -> Renewal:
    """Decide what a bundle needs to serve `hosts`. What cannot be read is made anew."""
    try:
        if bundle is None:
            return Renewal.AUTHORITY
        authority = x509.load_pem_x509_certificates(bundle.authority.encode())[0]
        signing_key = serialization.load_pem_private_key(bundle.authority_key.encode(), None)
        if signing_key.public_key() != authority.public_key() or _is_old(authority, now):
            return Renewal.AUTHORITY
    except (ValueError, TypeError, IndexError):
        return Renewal.AUTHORITY
    try:
        serving = x509.load_pem_x509_certificate(bundle.certificate.encode())
        key = serialization.load_pem_private_key(bundle.key.encode(), None)
        serving.verify_directly_issued_by(authority)
        names = serving.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        known = set(names.get_values_for_type(x509.DNSName))
        if key.public_key() != serving.public_key() or _is_old(serving, now) or not set(hosts) <= known:
            return Renewal.SERVING
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return Renewal.SERVING
    return Renewal.NOTHING


def issue_bundle(bundle: Bundle | None, renewal: Renewal, hosts: Sequence[str], now: datetime.datetime) -> Bundle:
    """Return a bundle with what `renewal` asks for. Keys come from the system's random source."""
    if renewal is Renewal.NOTHING and bundle is not None:
        return bundle
    if renewal is Renewal.AUTHORITY or bundle is None:
        authority_key = ec.generate_private_key(ec.SECP256R1())
        issuer = _issue_authority(authority_key, now)
        announced = [issuer, *_unexpired(bundle, now)]
        authority_text, authority_key_text = "".join(map(_pem, announced)), _key_pem(authority_key)
    else:
        issuer = x509.load_pem_x509_certificates(bundle.authority.encode())[0]
        loaded = serialization.load_pem_private_key(bundle.authority_key.encode(), None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey), "the authority's key is not ours"
        authority_key = loaded
        authority_text = "".join(map(_pem, [issuer, *_unexpired(bundle, now)[1:]]))
        authority_key_text = bundle.authority_key
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _issue_serving(key, issuer, authority_key, hosts, now)
    return Bundle(authority_text, authority_key_text, _pem(certificate), _key_pem(key))


def expiry_of(bundle: Bundle) -> datetime.datetime:
    """When the serving certificate ends. Raises ValueError for a text that is none."""
    return x509.load_pem_x509_certificate(bundle.certificate.encode()).not_valid_after_utc


def service_hosts(service: str, namespace: str) -> tuple[str, ...]:
    """Names by which the API server reaches a Service; it checks the first."""
    return f"{service}.{namespace}.svc", f"{service}.{namespace}", f"{service}.{namespace}.svc.cluster.local"


def _is_old(certificate: x509.Certificate, now: datetime.datetime) -> bool:
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return not start <= now < end - (end - start) / RENEW_LEFT


def _unexpired(bundle: Bundle | None, now: datetime.datetime) -> list[x509.Certificate]:
    if bundle is None:
        return []
    try:
        known = x509.load_pem_x509_certificates(bundle.authority.encode())
    except ValueError:
        return []
    return [certificate for certificate in known if now < certificate.not_valid_after_utc]


def _issue_authority(key: ec.EllipticCurvePrivateKey, now: datetime.datetime) -> x509.Certificate:
    # The moment in the name keeps two authorities apart in chains of trust.
    name = _name(f"{AUTHORITY_NAME}@{int(now.timestamp())}")
    builder = _builder(name, name, key.public_key(), now, AUTHORITY_LIFETIME)
    return (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _issue_serving(
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate,
    issuer_key: ec.EllipticCurvePrivateKey,
    hosts: Sequence[str],
    now: datetime.datetime,
) -> x509.Certificate:
    end = min(SERVING_LIFETIME, issuer.not_valid_after_utc - now)
    builder = _builder(_name(hosts[0][:64]), issuer.subject, key.public_key(), now, end)
    return (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    lifetime: datetime.timedelta,
) -> x509.CertificateBuilder:
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=public_key,
        serial_number=x509.random_serial_number(),
        not_valid_before=now - CLOCK_SKEW,
        not_valid_after=now + lifetime,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
