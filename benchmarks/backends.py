"""Which model is built, run and verified for which target on this machine: ``docs/backends.md``.

``make docs-backends``. Every linear that is large enough takes the target's first coded format and
every table row-wise INT8 where the target has it, so that the backend is tried, not the plan. What
is verified is that the artifact scores like the same program in eager PyTorch.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from rankc import models
from rankc.optimizer.data.synthetic import synthesize
from rankc.optimizer.errors import RankcError
from rankc.optimizer.ir import Program
from rankc.optimizer.registry import backend
from rankc.optimizer.target import Target

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))
from placed import coded, optimized, with_coded_tables  # noqa: E402

#: One target of each kind of build: H200 and B200 are built like H100.
_TARGETS = ("cpu-int8", "mlir-cpu", "a100-int8", "l40s-fp8", "h100-fp8", "rtx6000-fp8")
_ROWS = (1, 7, 64)
#: A score may differ from the program's by this share of the largest, at most; codes next to a
#: border between two steps may fall on either side.
_ALLOWED = 1e-2


@dataclass(frozen=True)
class Cell:
    """One model on one target.

    Attributes:
        built: By which backend; empty if by none.
        ran: How it was run.
        off: Largest difference of a score over the largest score.
        why: What refused it.
    """

    built: str
    ran: str = ""
    off: float = 0.0
    why: str = ""

    def __str__(self) -> str:
        if not self.built:
            return f"no: {self.why}"
        return f"{self.built}, {self.ran}, {self.off:.0e}{'' if self.verified else ' NOT verified'}"

    @property
    def verified(self) -> bool:
        """Whether the scores are the program's."""
        return self.off <= _ALLOWED


def main() -> None:
    """Builds everything and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(models.zoo()))
    parser.add_argument("--targets", default=",".join(_TARGETS))
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "backends.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    targets = [Target.of(name) for name in arguments.targets.split(",")]
    rows = []
    for name in arguments.models.split(","):
        program = optimized(name)
        cells = [tried(program, target) for target in targets]
        rows.append(f"| {name} | " + " | ".join(map(str, cells)) + " |")
        print(rows[-1], flush=True)
        arguments.out.write_text(page(targets, rows))


def page(targets: list[Target], rows: list[str]) -> str:
    """The preface, and a row per model."""
    preface = (ROOT / "benchmarks" / "backends_preface.md").read_text()
    head = "| model | " + " | ".join(f"`{target.name}`" for target in targets) + " |"
    return "\n".join([preface, head, "|---" * (len(targets) + 1) + "|", *rows]) + "\n"


def tried(program: Program, target: Target) -> Cell:
    """The first backend of the target that builds the program here, and how its scores compare."""
    formats = [f for f in target.formats if f in ("int8", "fp8")]
    if target.table_formats:
        program = with_coded_tables(program)
    if formats and target.int8_activations == "int8":
        program, _ = coded(program, formats[0])
    why = ""
    for name in target.backends:
        builder = backend(name)
        folder = Path(tempfile.mkdtemp(prefix="rankc-"))
        try:
            builder.build(program, target, folder, {})
            run = builder.open(folder, 1)
            errors, sizes = dict.fromkeys(program.signature.outputs, 0.0), dict[str, float]()
            for count in _ROWS:
                features = synthesize(program.signature, count, count).features
                scores = run({key: value.numpy() for key, value in features.items()})
                for key, want in program.run(features).items():
                    errors[key] = max(errors[key], float(abs(scores[key] - want.numpy()).max()))
                    sizes[key] = max(sizes.get(key, 1e-30), float(want.abs().max()))
            off = max(error / sizes[key] for key, error in errors.items())
            here = builder.here(target)
            built = here.built if here.built != name else name
            return Cell(built, "run" if here.run == "yes" else here.run, off)
        except RankcError as error:
            why = why or str(error).splitlines()[0][:80]
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return Cell("", why=why)


if __name__ == "__main__":
    main()
