"""Signatures: who vouches for an artifact. Ed25519, by the library ``cryptography``."""

from __future__ import annotations

import base64
import binascii
import os
from pathlib import Path
from typing import Any

from ..errors import ArtifactError
from .integrity import MANIFEST, SIGNATURE, read_text

_PIP = "pip install cryptography"
#: What is signed begins with this, so that a signature can't be taken for one of something else.
_PURPOSE = b"rankc artifact manifest 1\n"


def sign(folder: Path, key: Path) -> Path:
    """Signs an artifact's manifest, which has the hashes of all its files.

    Args:
        folder: The artifact.
        key: A private key: ``openssl genpkey -algorithm ed25519``.

    Returns:
        The signature's file.

    Raises:
        ArtifactError: The key is no private Ed25519 key without a password, or the folder can't be
            written.
    """
    private = _key(key, private=True)
    signature = private.sign(_PURPOSE + read_text(folder / MANIFEST).encode())
    path, beside = folder / SIGNATURE, folder / f".{SIGNATURE}.new"
    try:
        beside.write_text(base64.b64encode(signature).decode() + "\n")
        os.replace(beside, path)
    except OSError as error:
        raise ArtifactError(f"{path} can't be written: {error}") from error
    return path


def require_signed(folder: Path, manifest: str, key: Path) -> None:
    """Raises unless an artifact's manifest was signed by the private half of a key.

    Args:
        folder: The artifact.
        manifest: The text of its manifest.
        key: The public key: ``openssl pkey -in … -pubout``.

    Raises:
        ArtifactError: There is no signature, it is by another key, or something was changed.
    """
    public = _key(key, private=False)
    if not (folder / SIGNATURE).exists():
        raise ArtifactError(
            f"{folder} isn't signed: it has no {SIGNATURE}. Sign it with rankc sign."
        )
    from cryptography.exceptions import InvalidSignature

    try:
        signature = base64.b64decode(read_text(folder / SIGNATURE).strip(), validate=True)
        public.verify(signature, _PURPOSE + manifest.encode())
    except (InvalidSignature, binascii.Error, ValueError) as error:
        raise ArtifactError(
            f"{folder} isn't signed by {key}: another key signed it, or its manifest was changed "
            "afterwards."
        ) from error


def _key(path: Path, *, private: bool) -> Any:
    """An Ed25519 key in a PEM file."""
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise ArtifactError(f"signatures need cryptography: {_PIP}") from error
    kind = "private" if private else "public"
    try:
        data = path.read_bytes()
        found: Any = (
            serialization.load_pem_private_key(data, password=None)
            if private
            else serialization.load_pem_public_key(data)
        )
    except (OSError, TypeError, ValueError, UnsupportedAlgorithm) as error:
        raise ArtifactError(f"{path} is no {kind} key (PEM): {error}") from error
    wanted = ed25519.Ed25519PrivateKey if private else ed25519.Ed25519PublicKey
    if not isinstance(found, wanted):
        raise ArtifactError(
            f"{path} is no {kind} Ed25519 key; make a pair with openssl genpkey -algorithm "
            "ed25519 -out key.pem, and openssl pkey -in key.pem -pubout -out pub.pem."
        )
    return found
