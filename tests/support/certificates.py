"""Certificates for receivers that speak TLS, good ones and bad ones."""

import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

Extension = tuple[x509.ExtensionType, bool]  # and whether it is critical

_SIGNS = x509.KeyUsage(
    key_cert_sign=True,
    crl_sign=True,
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    encipher_only=False,
    decipher_only=False,
)


class Authority:
    """A certificate authority that is unknown until its `pem` is trusted."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        extensions: list[Extension] = [
            (x509.BasicConstraints(ca=True, path_length=None), True),
            (_SIGNS, True),
        ]
        self._certificate = self._sign("Test authority", self._key, extensions)

    @property
    def pem(self) -> bytes:
        return self._certificate.public_bytes(Encoding.PEM)

    def server(
        self, *hosts: str, expired: bool = False, self_signed: bool = False
    ) -> ssl.SSLContext:
        """The context of a server whose certificate is for `hosts`, names or addresses.

        One that is self-signed has the authority's own name and key, but not its rights.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with TemporaryDirectory() as folder:
            path = Path(folder, "server.pem")
            path.write_bytes(self.server_pem(*hosts, expired=expired, self_signed=self_signed))
            context.load_cert_chain(path)
        return context

    def server_pem(self, *hosts: str, expired: bool = False, self_signed: bool = False) -> bytes:
        """The private key and the certificate of such a server."""
        key = self._key if self_signed else ec.generate_private_key(ec.SECP256R1())
        name = "Test authority" if self_signed else "Test server"
        names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
        certificate = self._sign(name, key, [(names, False)], expired)
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return secret + certificate.public_bytes(Encoding.PEM)

    def _sign(
        self,
        name: str,
        key: ec.EllipticCurvePrivateKey,
        extensions: list[Extension],
        expired: bool = False,
    ) -> x509.Certificate:
        end = datetime.now(UTC) + timedelta(days=-1 if expired else 1)
        builder = x509.CertificateBuilder(
            issuer_name=_name("Test authority"),
            subject_name=_name(name),
            public_key=key.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=end - timedelta(days=2),
            not_valid_after=end,
        )
        # Python 3.13 refuses certificates without key identifiers.
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        subject = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        for extension, critical in [*extensions, (issuer, False), (subject, False)]:
            builder = builder.add_extension(extension, critical)
        return builder.sign(self._key, hashes.SHA256())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)
