"""Signatures are by a key, and of the manifest as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from rankc.optimizer.artifact.signing import require_signed, sign
from rankc.optimizer.errors import ArtifactError


def test_a_folder_without_a_signature_says_how(tmp_path: Path) -> None:
    serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.generate()
    key = tmp_path / "public.pem"
    key.write_bytes(
        private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    with pytest.raises(ArtifactError, match="isn't signed"):
        require_signed(tmp_path, "{}", key)
    with pytest.raises(ArtifactError):
        sign(tmp_path, key)  # a public key signs nothing
