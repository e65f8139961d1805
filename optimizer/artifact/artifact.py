"""`Artifact`: what `optimize` hands back, and what a serving machine loads."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.arrays import arrays_of, is_tensor, tensors_like
from ..data.batch import Batch, call_of
from ..data.checks import Plan
from ..errors import ArtifactError, SignatureError
from ..fitting import reading, require_fit
from ..ir.scratch import Scratch, remove_left, written_folder
from ..ir.signature import Signature
from ..ir.structure import bind_arguments
from ..quality.verdict import Verdict
from ..registry import runtime
from ..requests.entry import ITEMS, REQUEST, Entry, one_user, without_copies
from ..timing import Timing, side_by_side
from .chunks import ArrayRunner, in_pieces
from .integrity import (
    MANIFEST,
    REPORT_JSON,
    REPORT_TEXT,
    REPORTS,
    SIGNATURE,
    OpenFiles,
    check_listed,
    check_reports,
    file_facts,
    json_text,
    parsed,
    read_text,
    sealed,
)
from .manifest import Manifest, manifest_and_reports
from .refusal import Guard, opened_checks
from .reopened import reopened
from .travel import packed

if TYPE_CHECKING:
    from ..precision.pareto import Pareto
    from ..report.records import SiteRecord
    from ..report.report import Report


class Artifact:
    """An optimized model: called like the original, saved as a folder.

    Attributes:
        manifest: What it is and how to make it again.
        report: What was done; as plain data when loaded from a folder.
        scratch: The folder for temporary files that it lives in, which goes with the last artifact
            or runner that uses it; None where it lives in a folder of the user's.
        saved: Where it was last saved.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        report: Report | Mapping[str, Any],
        files: OpenFiles | None = None,
        scratch: Scratch | None = None,
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.report = report
        self._files = files
        self.scratch = scratch
        self.saved: Path | None = None
        self._plan = Plan(manifest.signature)
        self._guard = self._guarded(manifest.signature)
        self._runner = self._opened(None)
        entry = manifest.request
        self._request = self.open_request() if entry else None
        self._request_plan = Plan(entry.signature(manifest.signature)) if entry else None
        self._items: ArrayRunner | None = None
        if entry is not None and entry.ahead:
            self._items = self._guard.around(self._opened(ITEMS))

    def _guarded(self, signature: Signature, shared: tuple[str, ...] = ()) -> Guard:
        """What tells why a batch, or a request, can't be scored."""
        made = self.manifest
        opening = partial(opened_checks, self.folder, self._files, self.scratch)
        first = not runtime(made.backend).refuses
        return Guard(signature, made.checks, opening, first=first, shared=shared)

    def _watched(self, run: ArrayRunner) -> ArrayRunner:
        """A runner whose calls fail if a file of a loaded folder was changed."""
        return run if self._files is None else self._files.watched(run)

    @property
    def verdict(self) -> Verdict:
        """Whether it ranks as well as the original."""
        return self.manifest.verdict

    @property
    def signature(self) -> Signature:
        """Its features and tasks."""
        return self.manifest.signature

    @property
    def onnx_path(self) -> Path:
        """The ONNX file.

        Raises:
            ArtifactError: Its backend wrote none.
        """
        path = self.folder / "model.onnx"
        if not path.exists():
            raise ArtifactError(f"the {self.manifest.backend} backend wrote no ONNX file.")
        return path

    @property
    def nbytes(self) -> int:
        """Bytes of its files, manifest and report not counted."""
        return sum(int(facts["bytes"]) for facts in self.manifest.files.values())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Scores a batch as the original model does: torch in, torch out; numpy in, numpy out.

        A single tuple, dict or `Batch` stands for all arguments.

        Raises:
            SignatureError: The batch doesn't fit; which feature, and what was expected.
            DataError: NaN or Inf in a feature.
        """
        given, like = self._given(args, kwargs)
        arrays = self._plan.filled(self._plan.arrays(given))
        self._plan.check(arrays)
        return self._returned(self._scored(arrays), like)

    def request(self, *args: Any, **kwargs: Any) -> Any:
        """Scores the candidates of one request, nested as the original model takes its inputs.

        What they share has one row; it may be given once a candidate, and is checked then.

        Raises:
            ArtifactError: It takes flat batches alone.
            SignatureError: The request doesn't fit; which feature, and what was expected.
            DataError: No candidate, a shared feature that varies, or NaN or Inf in a feature.
        """
        entry, plan = self._entry(), self._request_plan
        assert plan is not None
        given, like = self._given(args, kwargs)
        once = without_copies(self.signature, plan.arrays(given), entry.shared)
        candidates_first = dict(sorted(once.items(), key=lambda item: item[0] in entry.shared))
        arrays = plan.filled(candidates_first)
        plan.check(arrays)
        return self._returned(self.run_request(arrays), like)

    def run_request(self, features: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
        """A request's output arrays by name, from features by name, unchecked: the fast path.

        What `precompute` gave takes the place of the candidates' features.

        Raises:
            ArtifactError: It takes flat batches alone.
        """
        self._entry()
        assert self._request is not None
        return self._request(features)

    def precompute(self, features: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
        """What requests take of candidates, ``{name: [N, …]}``, to be kept with each candidate.

        Args:
            features: The candidates' own, by name.

        Raises:
            ArtifactError: It wasn't built with ``precompute_items``.
            SignatureError: A feature is missing or doesn't fit.
            DataError: NaN or Inf in a feature.
        """
        entry = self._entry()
        if self._items is None:
            raise ArtifactError(
                "this artifact computes nothing ahead; build one with "
                "rankc.Request(…, precompute_items=True)."
            )
        own = replace(
            self.signature,
            features=tuple(f for f in self.signature if f.name not in entry.shared),
        )
        missing = [n for n in own.names if n not in features and n not in own.optional]
        if missing:
            raise SignatureError(f"features {missing} of the candidates are missing.")
        plan = Plan(own)
        found = {name: features[name] for name in own.names if name in features}
        arrays = plan.filled(plan.arrays(found))
        plan.check(arrays)
        return entry.made_ahead(self._items, arrays)

    def open(self, threads: int | None = None) -> ArrayRunner:
        """What scores flat batches, feature arrays by name, opened anew.

        Args:
            threads: How many to use; None leaves it to the backend.

        Raises:
            ArtifactError: That many threads can't be, or the files can't be read.
        """
        run = in_pieces(self._opened(None, threads), self.manifest.pieces, threads)
        return self._guard.around(run)

    def open_request(self, threads: int | None = None) -> ArrayRunner:
        """What scores requests, feature arrays by name, opened anew.

        Raises:
            ArtifactError: It takes flat batches alone.
        """
        entry = self._entry()
        guard = self._guarded(entry.signature(self.signature), entry.shared)
        request = self._opened(REQUEST, threads)
        if not entry.ahead:
            return guard.around(request)
        items = self._opened(ITEMS, threads)

        def scored(arrays: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
            if all(name in arrays for name in entry.ahead):
                return request(arrays)
            return request({**arrays, **entry.made_ahead(items, arrays)})

        return guard.around(scored)

    def _opened(self, entry: str | None, threads: int | None = None) -> ArrayRunner:
        """One of its programs: that for flat batches, or another by its name."""
        name = self.manifest.backend
        return self._watched(reopened(name, self.folder, entry, threads, self.scratch))

    def _entry(self) -> Entry:
        if self.manifest.request is None:
            raise ArtifactError(
                "this artifact has no entry for requests; build one with "
                "rankc.optimize(model, request=rankc.Request(…))."
            )
        return self.manifest.request

    def _given(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
        """A call's features by name, and the first of them that is a tensor."""
        found = self.manifest.inputs.flatten(self._bind(args, kwargs), self.signature.optional)
        return found, next((value for value in found.values() if is_tensor(value)), None)

    def _returned(self, results: Mapping[str, np.ndarray[Any, Any]], like: Any) -> Any:
        """Outputs as the original nests them, as tensors where there is one that they are like."""
        found = results if like is None else tensors_like(results, like)
        return self.manifest.outputs.unflatten(found)

    def run(self, features: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
        """Output arrays by name, from features by name: the fast path.

        Only what can't be scored is refused: NaN and what a shape broadcasts aren't looked for.

        Raises:
            SignatureError: Ids beyond their table, or what doesn't fit; which feature and row.
        """
        if any(name not in features for name in self.signature.optional):
            features = self._plan.filled(self._plan.arrays(features))
        return self._scored(arrays_of(features))

    def _scored(self, arrays: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
        runner = in_pieces(self._runner, self.manifest.pieces, None)
        return self._guard.run(runner, arrays)

    @property
    def sites(self) -> tuple[SiteRecord, ...]:
        """The decision per table and linear."""
        report = self.report
        if not isinstance(report, Mapping):
            return tuple(report.sites)
        from ..report.records import SiteRecord

        with reading(self.folder / REPORT_JSON, ArtifactError):
            sites = tuple(SiteRecord.from_json(site) for site in report["sites"])
            for index, site in enumerate(sites):
                require_fit(site, f"sites[{index}]")
        return sites

    def explain(self, site: str | None = None) -> str:
        """Why a site has the format it has, in words; of all sites, a line each.

        Args:
            site: The user's name of the module, such as ``"over.0"``.

        Raises:
            ArtifactError: No format was decided there; the nearest names are given.
        """
        from ..precision.explain import explain

        sites = self.sites
        with reading(self.folder / REPORT_JSON, ArtifactError):
            return explain(sites, site)

    def pareto(self) -> Pareto:
        """The plans that are best for some budget, of which this artifact's is one.

        Raises:
            ArtifactError: Its formats were not chosen on data, so nothing was measured; or torch
                isn't installed.
        """
        placement = self._plain_report().get("placement")
        if not placement:
            raise ArtifactError("no formats were chosen on data, so there is no curve to draw.")
        with _needing("the curve of plans"):
            from ..precision.pareto import Pareto
            from ..precision.probe import Probe
        sites = self.sites
        with reading(self.folder / REPORT_JSON, ArtifactError):
            probe = Probe.from_records(sites, placement["measured"], placement["memory_weight"])
            return Pareto.of(probe, {site.site: site.chosen for site in sites})

    @property
    def emulated(self) -> bool:
        """Whether it is scored on the CPU here, in place of the device it is for.

        Its scores are those of the file, each Q and DQ as written; its times say nothing of the
        device.
        """
        found: bool = runtime(self.manifest.backend).emulates(tuple(self.manifest.files))
        return found

    def benchmark(
        self,
        batch_sizes: Sequence[int] = (1, 64, 512),
        threads: int = 1,
        seed: int = 0,
        *,
        requests: bool = False,
    ) -> dict[int, Timing]:
        """Seconds a call at each batch size, on made-up rows; as requests where that is asked for.

        Raises:
            ArtifactError: It takes flat batches alone; or torch, which makes rows up, isn't
                installed.
        """
        with _needing("making rows up"):
            from ..data.synthetic import synthesize
        shared = self._entry().shared if requests else ()
        runner = self.open_request(threads) if requests else self.open(threads)
        found: dict[int, Timing] = {}
        for size in batch_sizes:
            rows = synthesize(self.signature, size, seed)
            arrays = arrays_of(one_user(rows.features, shared))
            if requests and self._items is not None:
                arrays |= self.precompute(arrays)
            found[size] = side_by_side({"artifact": lambda a=arrays: runner(a)})["artifact"]  # type: ignore[misc]
        return found

    def save(self, folder: str | Path) -> Path:
        """Writes the artifact to a new folder: all of it, or nothing.

        Raises:
            ArtifactError: The folder exists, or can't be written.
        """
        destination = Path(folder)
        check_destination(destination)
        try:
            destination.parent.mkdir(parents=True, exist_ok=True)
            with written_folder(destination) as place:
                self.write(place)
        except OSError as error:
            raise ArtifactError(f"{destination} can't be written: {error}") from error
        self.saved = destination.absolute()
        return destination

    def write(self, place: Path) -> None:
        """Writes what it is saved as into an empty folder.

        Raises:
            ArtifactError: Its own files were removed.
            OSError: The folder can't be written.
        """
        for name in self.manifest.files:
            shutil.copyfile(self._file(name), place / name)
        (place / REPORT_JSON).write_text(json_text(self._plain_report()))
        (place / REPORT_TEXT).write_text(self._report_text())
        whole = sealed(self.manifest.to_json(), file_facts(place, REPORTS))
        (place / MANIFEST).write_text(json_text(whole))

    def _file(self, name: str) -> Path:
        """One of its files.

        Raises:
            ArtifactError: It was removed.
        """
        path = self.folder / name
        if not path.is_file():
            raise ArtifactError(f"{path} is gone: this artifact's folder was removed.")
        return path

    def _plain_report(self) -> Mapping[str, Any]:
        report = self.report
        return report if isinstance(report, Mapping) else report.to_json()

    def _report_text(self) -> str:
        if isinstance(self.report, Mapping):
            return read_text(self._file(REPORT_TEXT))
        return str(self.report)

    def __reduce__(self) -> tuple[Callable[..., Artifact], tuple[Any, ...]]:
        """It travels as its folder: by its path where it is saved, else with all its files."""
        return packed(self)

    def __copy__(self) -> Artifact:
        """Another of the same folder, with runners of its own; folders aren't written to."""
        return Artifact(self.folder, self.manifest, self.report, self._files, self.scratch)

    def __deepcopy__(self, memo: dict[int, Any]) -> Artifact:
        """As `copy.copy`, with a report of its own."""
        report = copy.deepcopy(self.report, memo)
        return Artifact(self.folder, self.manifest, report, self._files, self.scratch)

    @classmethod
    def load(
        cls, folder: str | Path, *, trust_code: bool = False, key: str | Path | None = None
    ) -> Artifact:
        """Opens a saved artifact: only what its manifest lists, and only as it was written.

        Args:
            folder: The artifact.
            trust_code: Whether files that are programs may be opened: a ``.pt2``, which is
                unpickled, compiled packages and engines. They can do whatever this process can.
            key: A public key (Ed25519, PEM) by which the folder must be signed.

        Raises:
            ArtifactError: The folder is missing, damaged, changed or not an artifact; it isn't
                signed by the key; or it holds code that isn't trusted.
        """
        place = Path(folder)
        manifest, reports = manifest_and_reports(place, key)
        check_listed(place, manifest.files)
        code = runtime(manifest.backend).code_in(tuple(manifest.files))
        if code and not trust_code:
            raise ArtifactError(
                f"{place} holds code, which opening it would run: {code}. If you trust whoever "
                "made it, open it with rankc.load(…, trust_code=True)."
            )
        # A link to the folder may be turned to another while this one is opened.
        place = place.resolve()
        files = OpenFiles(place, manifest.files)
        check_reports(place, reports)
        report = parsed(place / REPORT_JSON, read_text(place / REPORT_JSON))
        if not isinstance(report, dict):
            raise ArtifactError(f"{place / REPORT_JSON} is damaged or foreign: it is no report.")
        return cls(place, manifest, report, files)

    def _bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        arguments = self.manifest.arguments
        if len(args) == 1 and not kwargs:
            (inputs,) = args
            if isinstance(inputs, Batch):
                return call_of(arguments, inputs.inputs)
            # The one argument of a model may be a tuple or a dict itself.
            nested = len(arguments) == 1 and self.manifest.inputs.names != arguments
            if isinstance(inputs, (tuple, list, Mapping)) and not nested:
                return call_of(arguments, inputs)
        return bind_arguments(arguments, args, kwargs)


@contextmanager
def _needing(what: str) -> Iterator[None]:
    """Says what an import is for that fails.

    Raises:
        ArtifactError: Which package is missing.
    """
    try:
        yield
    except ImportError as error:
        needed = error.name or "torch"
        raise ArtifactError(
            f"{what} needs {needed}, which isn't installed: pip install {needed}"
        ) from error


def check_destination(folder: Path) -> None:
    """Raises if an artifact can't be saved there, before any work is done.

    Raises:
        ArtifactError: Something is there already, or in the way.
    """
    if folder.exists():
        raise ArtifactError(f"{folder} exists already; give a new folder, or remove it.")
    above = next(parent for parent in folder.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ArtifactError(f"{folder} can't be written: {above} is no folder to write in.")
    remove_left(above)


def verify(
    folder: str | Path, key: str | Path | None = None, *, complete: bool = False
) -> tuple[str, ...]:
    """Hashes all of an artifact's files; nothing of them is opened to run.

    Args:
        folder: The artifact.
        key: A public key by which it must be signed.
        complete: Whether the manifest must list the reports too, as this version's do.

    Returns:
        A line for each file, and what the folder leaves open.

    Raises:
        ArtifactError: It is no artifact, isn't signed by the key, or a file isn't what was written.
    """
    place = Path(folder)
    manifest, reports = manifest_and_reports(place, key)
    check_listed(place, manifest.files)
    OpenFiles(place, manifest.files, whole=True)
    check_reports(place, reports)
    listed = {**manifest.files, **reports}
    lines = [f"ok  {name}, {facts['bytes']:,} bytes" for name, facts in listed.items()]
    if not reports:
        missing = "an older rankc wrote this artifact; its manifest doesn't list the reports"
        if complete:
            raise ArtifactError(f"{missing}. Load and save it again with this one.")
        lines.append(missing)
    signed = (place / SIGNATURE).exists()
    if key is not None:
        lines.append(f"signed by {key}")
    else:
        lines.append(
            f"signed; --key says by whom ({SIGNATURE})"
            if signed
            else "not signed: this shows that nothing was damaged, not who wrote it"
        )
    return tuple(lines)
