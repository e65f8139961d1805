"""`Lowering`: from a captured program and a pipeline to what a target's backends build of it."""

from __future__ import annotations

import gc
import platform
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from .._version import __version__
from .artifact.computed_ids import built_checks
from .artifact.integrity import file_facts
from .artifact.manifest import Manifest
from .artifact.pending import Finish
from .artifact.race import Race
from .artifact.translation import Sample
from .backend import Built
from .compare.parked import park
from .data.rows import Rows
from .errors import PluginError, RankcError, TargetError, TranslationError, UnsupportedError
from .ir.bounds import without_bounds
from .ir.program import Program, with_defaults
from .ir.scratch import Scratch
from .milestones import Milestones
from .pipeline.passbase import Exactness, PassContext
from .pipeline.pipeline import Pipeline
from .quality.budget import Budget
from .quality.verdict import Verdict
from .registry import backend, served
from .requests.ahead import entries_of
from .requests.request import Request, as_flat, as_request
from .target import Target

#: Optimized programs up to this size are kept, to tell where their error enters if they fail.
_KEPT_BYTES = 256 * 2**20
#: What a candidate that wasn't finetuned must gain of time over one that was, which was asked for.
_WORTH = 0.98


@dataclass(frozen=True, kw_only=True)
class Lowering:
    """What every build of one call of `optimize` shares.

    Attributes:
        program: As captured.
        target: What is built for.
        budget: The limits, as the manifest says them.
        batch_sizes: The batch sizes that will be served.
        strict: Whether what would be left out with a note is an error.
        seed: As the manifest says it.
        sample: Rows on which what is built is compared with the program.
        request: What candidates of a request have in common.
        shared: The features they share.
        rows: A hash of the rows that chose, for the manifest; empty without.
        say: Is told what is being worked on.
    """

    program: Program
    target: Target
    budget: Budget
    batch_sizes: tuple[int, ...]
    strict: bool
    seed: int
    sample: Sample
    request: Request | None
    shared: tuple[str, ...]
    rows: str
    say: Milestones

    def built(
        self,
        names: Sequence[str],
        steps: Pipeline,
        context_for: Callable[[Target], PassContext],
        rows: Rows,
        refusals: list[RankcError],
    ) -> list[Finish]:
        """What some of the target's backends make of the program.

        Where the target can't be timed here, what the first of them makes.
        """
        found: list[Finish] = []
        lossless = steps.without(Exactness.LOSSY, Exactness.TRAINED)
        for name in names:
            try:
                try:
                    finish = self._build(steps, context_for(served(self.target, name)))
                except TranslationError as error:
                    if lossless.spec() == steps.spec():
                        raise
                    finish = self._build(lossless, context_for(served(self.target, name)))
                    finish.report.notes.append(f"lower formats were given up: {error}")
            except (TargetError, TranslationError, UnsupportedError) as error:
                if self.strict and isinstance(error, PluginError):
                    raise
                refusals.append(error)
                continue
            gc.collect()  # graphs are cyclic; their tables must not wait for the collector
            found.append(finish)
            if not self.target.measured:
                break
            finish.split(self._timed(finish, rows), self.batch_sizes)
        return found

    def _timed(self, finish: Finish, rows: Rows) -> Rows:
        """The rows as what was built takes them."""
        return replace(rows, features=with_defaults(finish.signature, rows.features))

    def ranked(
        self, found: list[Finish], rows: Rows, refusals: Sequence[RankcError]
    ) -> list[Finish]:
        """Candidates by measured time, and their reports with it.

        Raises:
            TranslationError: What was built scores otherwise than the model.
            UnsupportedError: No backend takes the program.
        """
        if not found:
            wrong = next((e for e in refusals if isinstance(e, TranslationError)), None)
            raise wrong or UnsupportedError("\n".join(map(str, refusals)))
        if not self.target.measured:
            found = sorted(found, key=lambda f: f.seconds)
            found[0].report.notes += [f"not served by another backend: {why}" for why in refusals]
            return found
        self.say("timing the backends", 0.8)
        if len(found) == 1:
            found[0].report.notes += [f"not in the race: {why}" for why in refusals]
            return found
        runs = {finish.entry: finish.open() for finish in found}
        race = Race.of(runs, self._timed(found[0], rows), self.batch_sizes)
        for finish in found:
            finish.report.race = race
        handicap = {f.entry: 1.0 if f.entry == f.backend else 1.0 / _WORTH for f in found}
        return sorted(found, key=lambda f: race.relative[f.entry] * handicap[f.entry])

    def _build(self, steps: Pipeline, context: PassContext) -> Finish:
        """Runs the passes and lowers; the optimized program's tables, if large, are freed."""
        self.say("optimizing", 0.3)
        optimized = as_request(self.program, self.shared)
        steps.run(optimized, context)
        context.release()
        return self._lower(optimized, context, steps)

    def _lower(self, optimized: Program, context: PassContext, steps: Pipeline) -> Finish:
        """Builds with the backend that the context's target names."""
        (name,) = context.target.backends
        self.say(f"lowering for {self.target.name} with {name}", 0.7)
        scratch = Scratch()
        folder = scratch.path
        metadata = {
            "rankc.target": self.target.name,
            "rankc.batch_sizes": ",".join(map(str, self.batch_sizes)),
            "rankc.version": __version__,
            "rankc.recipe": ",".join(optimized.recipe),
            "rankc.fingerprint": optimized.fingerprint(),
        }
        bare = optimized if backend(name).refuses else without_bounds(optimized)
        flat = as_flat(bare, self.shared)
        try:
            built = backend(name).build(flat, context.target, folder, metadata)
            entry, beside = entries_of(self.request, self.shared, bare)
            for kind, program in beside.items():
                more = backend(name).build_beside(kind, program, context.target, folder, metadata)
                built = replace(built, files=(*built.files, *more.files))
            checks, files = built_checks(self.program, name, context.target, folder)
            built = replace(built, files=(*built.files, *files))
            manifest = self._manifest(flat, steps, name, folder, built)
            manifest = replace(manifest, request=entry, checks=checks)
            if self.strict:
                built.require_plan(name)
            kept = flat if flat.nbytes <= _KEPT_BYTES else None
            if kept is None:
                park((optimized, bare, flat), folder, but=self.program)
                gc.collect()
            finish = Finish(scratch, manifest, context.report, kept)
            self.say("comparing with the model", 0.75)
            sizes = self.batch_sizes
            finish.compare(self.program, flat, self.sample, context.target, sizes)
        except BaseException as error:
            scratch.failed(error)
            raise
        context.report.notes += built.notes
        return finish

    def _manifest(
        self, optimized: Program, steps: Pipeline, backend_name: str, folder: Path, built: Built
    ) -> Manifest:
        return Manifest(
            target=self.target.name,
            backend=backend_name,
            pipeline=steps.spec(),
            budget=self.budget.spec(),
            batch_sizes=self.batch_sizes,
            recipe=optimized.recipe,
            fingerprints={
                "captured": self.program.fingerprint(),
                "optimized": optimized.fingerprint(),
                **({"rows": self.rows} if self.rows else {}),
            },
            versions={
                "rankc": __version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
                **built.versions,
            },
            seed=self.seed,
            files=file_facts(folder, built.files),
            signature=optimized.signature,
            inputs=optimized.inputs,
            outputs=optimized.outputs,
            arguments=optimized.arguments,
            verdict=Verdict.unverified("not judged yet"),
            made_for=self.target,
        )


def formats_had(target: Target) -> frozenset[str]:
    """The target's formats that any of its backends has."""
    had: set[str] = set()
    for name in target.backends:
        with suppress(TargetError):  # said as what is not in the race
            had.update(backend(name).formats(target))
    return frozenset(had)


def lacking(target: Target) -> list[str]:
    """The target's formats that none of its backends has."""
    had = formats_had(target)
    return [name for name in target.formats if name not in had]
