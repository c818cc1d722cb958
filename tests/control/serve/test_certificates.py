"""The adapter's certificate is made once, renewed in time, and never leaves a replica untrusted."""

from __future__ import annotations

import dataclasses
import datetime

import pytest
from cryptography import x509

from windlass_operator.serve.certificates import (
    AUTHORITY_LIFETIME,
    SERVING_LIFETIME,
    Bundle,
    Renewal,
    choose_renewal,
    expiry_of,
    issue_bundle,
    service_hosts,
)

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
HOSTS = service_hosts("adapter", "system")
FIRST = issue_bundle(None, Renewal.AUTHORITY, HOSTS, NOW)
OTHER = issue_bundle(None, Renewal.AUTHORITY, HOSTS, NOW)


def authorities(bundle: Bundle) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(bundle.authority.encode())


@pytest.mark.parametrize(
    ("bundle", "later", "expected"),
    [
        pytest.param(None, datetime.timedelta(), Renewal.AUTHORITY, id="nothing yet"),
        pytest.param(FIRST, datetime.timedelta(), Renewal.NOTHING, id="new"),
        pytest.param(FIRST, SERVING_LIFETIME * 0.6, Renewal.NOTHING, id="two thirds not over"),
        pytest.param(FIRST, SERVING_LIFETIME * 0.7, Renewal.SERVING, id="the last third"),
        pytest.param(FIRST, AUTHORITY_LIFETIME * 0.7, Renewal.AUTHORITY, id="the authority's last third"),
        pytest.param(FIRST, AUTHORITY_LIFETIME * 2, Renewal.AUTHORITY, id="long over"),
        pytest.param(FIRST, -datetime.timedelta(days=1), Renewal.AUTHORITY, id="made by a clock that was ahead"),
        pytest.param(dataclasses.replace(FIRST, certificate="x"), datetime.timedelta(), Renewal.SERVING, id="no PEM"),
        pytest.param(dataclasses.replace(FIRST, key="x"), datetime.timedelta(), Renewal.SERVING, id="no key"),
        pytest.param(
            dataclasses.replace(FIRST, key=OTHER.key), datetime.timedelta(), Renewal.SERVING, id="another key"
        ),
        pytest.param(
            dataclasses.replace(FIRST, certificate=OTHER.certificate, key=OTHER.key),
            datetime.timedelta(),
            Renewal.SERVING,
            id="signed by another authority",
        ),
        pytest.param(
            dataclasses.replace(FIRST, authority_key=OTHER.authority_key),
            datetime.timedelta(),
            Renewal.AUTHORITY,
            id="another authority's key",
        ),
        pytest.param(dataclasses.replace(FIRST, authority=""), datetime.timedelta(), Renewal.AUTHORITY, id="none"),
    ],
)
def test_what_a_bundle_needs(bundle: Bundle | None, later: datetime.timedelta, expected: Renewal) -> None:
    assert choose_renewal(bundle, HOSTS, NOW + later) is expected


def test_another_name_needs_another_certificate() -> None:
    assert choose_renewal(FIRST, service_hosts("renamed", "system"), NOW) is Renewal.SERVING


def test_a_new_serving_certificate_keeps_the_authority() -> None:
    later = NOW + SERVING_LIFETIME * 0.7

    renewed = issue_bundle(FIRST, Renewal.SERVING, HOSTS, later)

    assert (renewed.authority, renewed.authority_key) == (FIRST.authority, FIRST.authority_key)
    assert renewed.certificate != FIRST.certificate
    assert choose_renewal(renewed, HOSTS, later) is Renewal.NOTHING
    assert expiry_of(renewed) == later + SERVING_LIFETIME


def test_a_new_authority_is_announced_together_with_the_one_before_until_that_has_expired() -> None:
    later = NOW + AUTHORITY_LIFETIME * 0.7

    second = issue_bundle(FIRST, Renewal.AUTHORITY, HOSTS, later)

    assert authorities(second)[1:] == authorities(FIRST)
    assert choose_renewal(second, HOSTS, later) is Renewal.NOTHING
    much_later = NOW + AUTHORITY_LIFETIME * 1.01
    assert len(authorities(issue_bundle(second, Renewal.SERVING, HOSTS, much_later))) == 1


def test_a_serving_certificate_does_not_outlive_its_authority() -> None:
    late = NOW + AUTHORITY_LIFETIME - datetime.timedelta(days=5)

    assert expiry_of(issue_bundle(FIRST, Renewal.SERVING, HOSTS, late)) == NOW + AUTHORITY_LIFETIME


def test_a_bundle_that_needs_nothing_stays() -> None:
    assert issue_bundle(FIRST, Renewal.NOTHING, HOSTS, NOW) is FIRST


def test_the_certificate_is_for_the_service_and_for_serving_alone() -> None:
    certificate = x509.load_pem_x509_certificate(FIRST.certificate.encode())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value

    assert names.get_values_for_type(x509.DNSName)[0] == "adapter.system.svc"
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert [item.dotted_string for item in usage] == ["1.3.6.1.5.5.7.3.1"]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_a_long_service_name_fits() -> None:
    hosts = service_hosts("a" * 63, "b" * 63)

    assert choose_renewal(issue_bundle(None, Renewal.AUTHORITY, hosts, NOW), hosts, NOW) is Renewal.NOTHING


def test_a_secret_holds_a_bundle() -> None:
    data = FIRST.to_data()

    assert Bundle.from_data(data) == FIRST
    for broken in (None, {}, {**data, "tls.key": "not base64!"}, {key: data[key] for key in list(data)[:3]}):
        assert Bundle.from_data(broken) is None
