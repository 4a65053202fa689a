# [Task]: T033 [From]: specs/requirements.md
"""Certificates for PostgreSQL servers: good ones and those that a client must not believe."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

_DAY = timedelta(days=1)


class Certificate(NamedTuple):
    """A server's certificate and key, as PEM files."""

    certificate: Path
    key: Path


class Authority:
    """A certificate authority; `root` is what goes into `sslrootcert`.

    A plain one leaves out what openssl by PostgreSQL's manual leaves out: its key's usage, and the
    issuer's key in what it issues.
    """

    def __init__(self, folder: Path, *, plain: bool = False) -> None:
        self._plain = plain
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("The suite's authority")
        builder = _builder(self._name, self._name, self._key, _DAY).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        if not plain:
            builder = builder.add_extension(_SIGNS_CERTIFICATES, critical=True)
        self.root = folder / "root.crt"
        self.root.write_bytes(builder.sign(self._key, SHA256()).public_bytes(Encoding.PEM))

    def issue(
        self,
        name: str,
        *,
        host: str = "localhost",
        expired: bool = False,
        self_signed: bool = False,
    ) -> Certificate:
        """A certificate for a host; the name is that of its files."""
        key = ec.generate_private_key(ec.SECP256R1())
        issuer, signing_key = (_name(host), key) if self_signed else (self._name, self._key)
        builder = _builder(_name(host), issuer, key, -_DAY if expired else _DAY).add_extension(
            x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False
        )
        if not self._plain:
            builder = builder.add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()),
                critical=False,
            )
        made = Certificate(self._folder / f"{name}.crt", self._folder / f"{name}.key")
        made.certificate.write_bytes(builder.sign(signing_key, SHA256()).public_bytes(Encoding.PEM))
        # Before there is anything to read.
        made.key.touch(mode=0o600)
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        made.key.write_bytes(private)
        return made


# The two that are true are key_cert_sign and crl_sign.
_SIGNS_CERTIFICATES = x509.KeyUsage(False, False, False, False, False, True, True, False, False)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, valid_for: timedelta
) -> x509.CertificateBuilder:
    end = datetime.now(UTC) + valid_for
    return (
        x509.CertificateBuilder(issuer, subject, key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(end - 2 * _DAY)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
