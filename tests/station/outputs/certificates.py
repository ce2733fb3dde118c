"""Certificates that sign themselves, made for one test."""

import datetime
import ipaddress
import socket


def self_signed(folder, name, uri):
    """Key and certificate as a plant's authority would hand them out, valid for a day."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number(), now, now + datetime.timedelta(days=1))
    names = x509.SubjectAlternativeName(
        [x509.UniformResourceIdentifier(uri), x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName(socket.gethostname())]
    )
    usage = x509.KeyUsage(True, True, True, True, False, True, False, False, False)
    purposes = x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH, x509.ExtendedKeyUsageOID.CLIENT_AUTH])
    signed = (
        builder.add_extension(x509.BasicConstraints(True, None), True)
        .add_extension(names, False)
        .add_extension(usage, False)
        .add_extension(purposes, False)
        .sign(key, hashes.SHA256())
    )
    (folder / f"{name}.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / f"{name}-key.pem").write_bytes(key.private_bytes(*plain))
    (folder / f"{name}-key.pem").chmod(0o600)
    return str(folder / f"{name}.pem"), str(folder / f"{name}-key.pem")
