"""What a saved artifact says of itself: `Manifest`, how it is read, and what it may say."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from ..errors import ArtifactError, RankcError
from ..fitting import MisfitError, is_finite, require, require_fit
from ..ir.scratch import remove_left
from ..ir.signature import MISSING, Feature, Signature
from ..ir.structure import Structure
from ..quality.verdict import Verdict
from ..requests.entry import Entry
from ..target import Target
from .chunks import Pieces
from .integrity import (
    MANIFEST,
    checksum,
    parsed,
    read_text,
)
from .refusal import Check
from .signing import require_signed

#: Raised when the folder's layout changes.
FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """What an artifact is and how to make it again.

    Attributes:
        target: The target's name.
        backend: The backend that built it, and runs it.
        pipeline: The pipeline as text.
        budget: The limits it had to stay within, as text.
        batch_sizes: The batch sizes it was planned for.
        recipe: The passes that changed something, in order.
        fingerprints: Of the captured and of the optimized program.
        versions: Of rankc and of the libraries that wrote it.
        seed: Whatever sampled, sampled with this.
        files: ``{name: {bytes, sha256}}``, and of large files the sha256 of each block.
        signature: Features and tasks.
        inputs: The nesting of the model's arguments.
        outputs: The nesting of what the model returns.
        arguments: The names of the model's arguments.
        verdict: The judgement it was released with.
        request: How it takes requests; None where it takes flat batches alone.
        pieces: ``(rows of a batch, rows of a piece)``, a thread's: from how many rows on batches
            are run in pieces, and of how many rows; 0 is whole.
        checks: Ids behind arithmetic that the program ``checks`` computes, and where they go.
        made_for: The target itself, by which the rest is built elsewhere; None in folders of
            earlier versions.
    """

    target: str
    backend: str
    pipeline: str
    budget: str
    batch_sizes: tuple[int, ...]
    recipe: tuple[str, ...]
    fingerprints: Mapping[str, str]
    versions: Mapping[str, str]
    seed: int
    files: Mapping[str, Mapping[str, Any]]
    signature: Signature
    inputs: Structure
    outputs: Structure
    arguments: tuple[str, ...]
    verdict: Verdict
    request: Entry | None = None
    pieces: Pieces = ()
    checks: tuple[Check, ...] = ()
    made_for: Target | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain dicts and lists; `from_json` reads them back."""
        return {
            "format": FORMAT,
            "target": self.target,
            "backend": self.backend,
            "pipeline": self.pipeline,
            "budget": self.budget,
            "batch_sizes": list(self.batch_sizes),
            "recipe": list(self.recipe),
            "fingerprints": dict(self.fingerprints),
            "versions": dict(self.versions),
            "seed": self.seed,
            "files": {name: dict(facts) for name, facts in self.files.items()},
            "signature": self.signature.to_json(),
            "inputs": self.inputs.to_json(),
            "outputs": self.outputs.to_json(),
            "arguments": list(self.arguments),
            "verdict": self.verdict.to_json(),
            "request": self.request.to_json() if self.request else None,
            "pieces": [list(rule) for rule in self.pieces],
            "checks": [check.to_json() for check in self.checks],
            "made_for": self.made_for.to_json() if self.made_for else None,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Manifest:
        """The manifest that `to_json` wrote.

        Raises:
            MisfitError: A field is missing, or isn't what it must be.
        """

        def entry(item: Any) -> Entry | None:
            return Entry.from_json(item) if item else None

        def target(item: Any) -> Target | None:
            return Target.from_json(item) if item is not None else None

        def pieces(items: Any) -> Pieces:
            return tuple((start, rows) for start, rows in items)

        manifest = cls(
            target=field_of(data, "target"),
            backend=field_of(data, "backend"),
            pipeline=field_of(data, "pipeline"),
            budget=field_of(data, "budget"),
            batch_sizes=field_of(data, "batch_sizes", tuple),
            recipe=field_of(data, "recipe", tuple),
            fingerprints=field_of(data, "fingerprints"),
            versions=field_of(data, "versions"),
            seed=field_of(data, "seed"),
            files=field_of(data, "files"),
            signature=field_of(data, "signature", Signature.from_json),
            inputs=field_of(data, "inputs", Structure.from_json),
            outputs=field_of(data, "outputs", Structure.from_json),
            arguments=field_of(data, "arguments", tuple),
            verdict=field_of(data, "verdict", Verdict.from_json),
            request=field_of(data, "request", entry, None),
            pieces=field_of(data, "pieces", pieces, ()),
            checks=field_of(data, "checks", lambda items: tuple(map(Check.from_json, items)), ()),
            made_for=field_of(data, "made_for", target, None),
        )
        check_manifest(manifest)
        return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an artifact folder.

    Raises:
        ArtifactError: There is none, or it isn't one this version reads.
    """
    return manifest_and_reports(folder)[0]


def manifest_and_reports(
    folder: Path, key: str | Path | None = None
) -> tuple[Manifest, Mapping[str, Any]]:
    """The manifest, signed by a key where there is one, and the facts of the reports beside it.

    Raises:
        ArtifactError: There is none, it isn't one this version reads, or isn't signed by the key.
    """
    path = folder / MANIFEST
    if not folder.exists():
        remove_left(folder.absolute().parent)  # a build that was killed may have set it aside
    if not path.is_file():
        raise ArtifactError(f"{folder} is no artifact: it has no {MANIFEST}.")
    text = read_text(path)
    if key is not None:
        require_signed(folder, text, Path(key))
    data = parsed(path, text)
    try:
        version = field_of(data, "format")
        if version != FORMAT:
            raise ArtifactError(
                f"{folder} has format {version}, this rankc reads {FORMAT}. "
                "Install the rankc that wrote it, or optimize again."
            )
        manifest = Manifest.from_json(data)
        reports: Mapping[str, Any] = data.get("reports", {})
        check_facts(reports, "reports")
        # Artifacts of earlier versions have none.
        require(
            data.get("checksum", "") in ("", checksum(data)),
            "checksum",
            "isn't that of the other fields: something was changed after it was written",
        )
    except MisfitError as error:
        raise ArtifactError(f"{path} is damaged or foreign: {error}.") from error
    return manifest, reports


_MISSING = object()


#: Numbers a row of one feature may have.
_ROW_NUMBERS = 1 << 26


_DTYPES = (
    *("float32", "float64", "float16", "bfloat16"),
    *("int64", "int32", "int16", "int8", "uint8", "bool"),
)


_HASH = re.compile(r"[0-9a-f]{64}")


def field_of(
    data: Any, name: str, made: Callable[[Any], Any] | None = None, otherwise: Any = _MISSING
) -> Any:
    """A field of a file, and what is made of it.

    Raises:
        MisfitError: It is missing, or nothing can be made of it; the message begins with its name.
    """
    if not isinstance(data, Mapping):
        raise MisfitError(f"it holds a {type(data).__name__}, not names and values")
    if name not in data:
        if otherwise is _MISSING:
            raise MisfitError(f"{name} is missing")
        return otherwise
    if made is None:
        return data[name]
    try:
        return made(data[name])
    except KeyError as error:
        raise MisfitError(f"{name} lacks {error}") from error
    except RecursionError as error:
        raise MisfitError(f"{name} is nested too deeply") from error
    except (
        *(AttributeError, IndexError, OverflowError, TypeError, ValueError),
        RankcError,
    ) as error:
        raise MisfitError(f"{name}: {error}") from error


def check_manifest(manifest: Manifest) -> None:
    """Raises unless a manifest's fields have their types and agree with one another.

    Raises:
        MisfitError: The place of what is wrong, and what was expected.
    """
    require_fit(manifest, "")
    require(bool(manifest.batch_sizes), "batch_sizes", "is empty")
    require(min(manifest.batch_sizes) > 0, "batch_sizes", "has a size below 1")
    check_facts(manifest.files, "files")
    signature = manifest.signature
    for index, feature in enumerate(signature.features):
        _check_feature(feature, f"signature.features[{index}]")
    _check_signature(signature)
    _check_once(manifest.arguments, "arguments")
    _check_known(manifest.inputs.names, signature.names, "inputs")
    _check_known(manifest.outputs.names, signature.outputs, "outputs")
    for start, rows in manifest.pieces:
        require(start >= 0 and rows >= 0, "pieces", "has a negative number of rows")
    if manifest.request is not None:
        _check_known(manifest.request.shared, signature.names, "request.shared")
    confidence = manifest.verdict.confidence
    require(0.0 < confidence < 1.0, "verdict.confidence", "is no share")
    require(manifest.verdict.rows >= 0, "verdict.rows", "is negative")


def check_facts(files: Any, place: str) -> None:
    """Raises unless files have a size and hashes.

    Raises:
        MisfitError: Which file hasn't.
    """
    require(isinstance(files, Mapping), place, "is no list of files with their facts")
    outside = [name for name in files if Path(name).name != name or "\0" in name]
    require(not outside, place, f"names files outside: {outside}")
    for name, facts in files.items():
        where = f"{place}.{name}"
        require(isinstance(facts, Mapping), where, "has no facts")
        size, digest, blocks = facts.get("bytes"), facts.get("sha256"), facts.get("blocks")
        require(_is_count(size), f"{where}.bytes", "is no number of bytes")
        require(_is_hash(digest), f"{where}.sha256", "is no sha256")
        if blocks is None:
            continue
        where = f"{where}.blocks"
        require(isinstance(blocks, Mapping), where, "is no list of hashes")
        each, hashes = blocks.get("bytes"), blocks.get("sha256")
        require(_is_count(each) and each > 0, f"{where}.bytes", "is no number of bytes")
        found = isinstance(hashes, Sequence) and all(map(_is_hash, hashes))
        require(found, f"{where}.sha256", "is no list of sha256")
        require(size > 0 and len(hashes) == -(-size // each), where, "doesn't cover the file")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and _HASH.fullmatch(value) is not None


def _check_feature(feature: Feature, place: str) -> None:
    require(feature.dtype in _DTYPES, f"{place}.dtype", f"is {feature.dtype!r}, no dtype of rows")
    sizes = [size for size in feature.shape if isinstance(size, int)]
    fits = all(size >= 0 for size in sizes) and prod(sizes) <= _ROW_NUMBERS
    require(fits, f"{place}.shape", f"is {list(feature.shape)}, no shape of a row")
    require(min(feature.cardinalities, default=0) >= 0, f"{place}.cardinalities", "are negative")
    lows = len(feature.lows) in (0, len(feature.cardinalities))
    require(lows, f"{place}.lows", "are not as many as its cardinalities")
    words = {word for entry in feature.missing for word in str(entry).split()}
    require(words <= set(MISSING), f"{place}.missing", f"has none of {MISSING}")
    require(
        0 <= feature.axis <= len(feature.shape), f"{place}.axis", "is no dimension of the shape"
    )
    numbers = [*([] if feature.default is None else [feature.default]), *(feature.bounds or ())]
    require(all(map(is_finite, numbers)), f"{place}", "has a default or bounds that are no numbers")


def _check_signature(signature: Signature) -> None:
    _check_once(signature.names, "signature.features")
    _check_once(signature.outputs, "signature.outputs")
    _check_once([task.name for task in signature.tasks], "signature.tasks")
    _check_known([task.output for task in signature.tasks], signature.outputs, "signature.tasks")
    delimiters = [feature.delimiter for feature in signature if feature.delimiter]
    _check_known(delimiters, signature.names, "signature.features")
    require(bool(signature.features), "signature.features", "is empty")
    require(bool(signature.outputs), "signature.outputs", "is empty")
    for task in signature.tasks:
        fits = task.column is None or task.column >= 0
        require(fits, f"signature.tasks.{task.name}.column", "is negative")


def _check_once(names: Sequence[str], place: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    require(not twice, place, f"names {twice[:3]} twice")


def _check_known(names: Sequence[str], known: Collection[str], place: str) -> None:
    unknown = [name for name in names if name not in known]
    require(not unknown, place, f"names {unknown[:3]}, which the signature doesn't have")
