"""A certificate for a page that another device opens: browsers give threads and WebGPU to secure contexts only."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import tempfile
from pathlib import Path

from distilledge.models.errors import DeviceError, MissingPackageError

DAYS = "30"


def context(certificate: str, key: str, host: str) -> ssl.SSLContext:
    """Of the user's files, or, where none are named, of a certificate for ``host`` made now by openssl.

    Raises ``MissingPackageError`` without openssl, ``DeviceError`` for files that are no certificate and key.
    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    if certificate:
        load(made, Path(certificate).expanduser(), Path(key or certificate).expanduser())
        return made
    with tempfile.TemporaryDirectory(prefix="distilledge-tls-") as folder:
        load(made, *self_made(Path(folder), host))
    return made


def load(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        what = f"no certificate and key: {certificate}, {key}: {error}"
        raise DeviceError("E6102", what, "name PEM files: `certificate` and `key` in devices.yaml") from None


def self_made(folder: Path, host: str) -> tuple[Path, Path]:
    """Certificate and key, never kept. The browser warns of it once."""
    if shutil.which("openssl") is None:
        hint = "install openssl, or name `certificate` and `key` in devices.yaml"
        raise MissingPackageError("E4066", "https needs a certificate, and there is no openssl to make one", hint)
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    name = f"IP:{host}" if host.replace(".", "").isdigit() or ":" in host else f"DNS:{host}"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-subj", "/CN=distilledge", "-addext", f"subjectAltName={name}", "-days", DAYS]
    command += ["-keyout", str(key), "-out", str(certificate)]
    old = os.umask(0o077)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    finally:
        os.umask(old)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise DeviceError("E6103", f"openssl made no certificate: {last[0]}", "name `certificate` and `key` instead")
    return certificate, key
