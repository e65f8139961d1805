"""Manifests that can't be read are errors of their folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from rankc.optimizer.artifact.manifest import field_of, read_manifest
from rankc.optimizer.errors import ArtifactError


@pytest.mark.parametrize("text", [None, "", "[]", "{}", "not json"])
def test_what_is_no_manifest_is_refused(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError):
        read_manifest(tmp_path)


def test_a_field_may_have_a_default() -> None:
    assert field_of({"a": 1}, "a") == 1
    assert field_of({}, "a", otherwise=2) == 2
