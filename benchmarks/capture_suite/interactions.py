"""Which interactions of two third-party libraries are recognised; ``make interactions``.

Captures the models of the capture suite, runs the pipelines `rounding`, `structure` and `grouping`,
and writes ``benchmarks/results/interactions.md``: what every interaction that a model is known to
have became, and why the others didn't become anything.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
LIBRARIES = {"deepctr-torch": "deepctr_cases", "torch-rechub": "rechub_cases"}
PAGE = HERE.parent / "results" / "interactions.md"


@dataclass(frozen=True)
class Recognised:
    """How a report shows that a kind of interaction was seen: what a pass says of it."""

    pass_name: str
    said: str = "applied"
    becomes: str = ""


#: By kind; whichever of them speaks.
KINDS: dict[str, tuple[Recognised, ...]] = {
    "factorization machine": (
        Recognised("reassociate-fm", "analysis", "left as the square of a sum"),
        Recognised("fuse-dot-interaction", "applied", "a product of all rows"),
    ),
    "dot products of pairs": (
        Recognised("fuse-dot-interaction", "applied", "a product of all rows"),
    ),
    "products of pairs": (
        Recognised("batch-row-products", "applied", "one product of gathered rows"),
    ),
    "cross with a vector": (Recognised("collapse-crosses", "applied", "numbers per row"),),
    "cross with a matrix": (Recognised("collapse-crosses", "analysis", "left, each a linear"),),
    "mixture of crosses": (Recognised("factor-mixtures", "applied", "one linear"),),
    "compressed interaction": (Recognised("flatten-cin", "applied", "a linear"),),
    "gate over fields": (Recognised("contract-products", "analysis", "left as it is"),),
    "self-attention": (Recognised("recast-attention", "applied", "over inputs or head by head"),),
    "target attention": (Recognised("split-linears", "applied", "linears of parts"),),
    "attention pooling": (Recognised("contract-products", "applied", "a matrix product"),),
    "mixture of experts": (Recognised("consolidate-heads", "applied", "one product"),),
    "outer products": (),
    "convolution": (Recognised("lower-convolution", "applied", "matrix products"),),
    "logarithmic": (),
    "recurrent": (),
}
#: What the papers and the libraries' code say that a model has, by its name without brackets, or
#: with them where they decide.
HAS: dict[str, dict[str, tuple[str, ...]]] = {
    "deepctr-torch": {
        "DeepFM": ("factorization machine",),
        "xDeepFM": ("compressed interaction",),
        "AFM[attention]": ("products of pairs", "attention pooling"),
        "AFM[sum]": ("factorization machine",),
        "DIFM": ("factorization machine", "self-attention"),
        "IFM": ("factorization machine",),
        "AutoInt": ("self-attention",),
        "DCN[vector]": ("cross with a vector",),
        "DCN[matrix]": ("cross with a matrix",),
        "DCNMix": ("mixture of crosses",),
        "FiBiNET": ("gate over fields", "products of pairs"),
        "NFM": ("factorization machine",),
        "ONN": ("products of pairs",),
        "CCPM": ("convolution",),
        "AFN": ("logarithmic",),
        "PNN[inner]": ("dot products of pairs",),
        "PNN": ("outer products",),
        "DIN": ("target attention", "attention pooling"),
        "DIEN": ("recurrent", "target attention"),
        "MMOE": ("mixture of experts",),
        "PLE": ("mixture of experts",),
    },
    "torch-rechub": {
        "DeepFM": ("factorization machine",),
        "DCN": ("cross with a vector",),
        "DCNv2[parallel, mixture]": ("mixture of crosses",),
        "DCNv2[stacked, mixture]": ("mixture of crosses",),
        "DCNv2": ("cross with a matrix",),
        "EDCN": ("cross with a vector",),
        "FiBiNet": ("gate over fields", "products of pairs"),
        "AFM": ("factorization machine",),
        "AutoInt": ("self-attention",),
        "DeepFFM": ("products of pairs",),
        "FatDeepFFM": ("products of pairs", "gate over fields"),
        "DIN": ("target attention", "attention pooling"),
        "BST": ("self-attention",),
        "DIEN": ("recurrent", "target attention"),
        "MMOE": ("mixture of experts",),
        "PLE": ("mixture of experts",),
        "AITM": ("attention pooling",),
    },
}
#: Why an interaction isn't recognised where no pass says so: by kind, or by model and kind.
WHY: dict[str, str] = {
    "AFM attention pooling": "written as one product of rows already",
    "AFM products of pairs": "written as one product of joined rows already",
    "BST self-attention": "its mask is an argument of scaled_dot_product_attention",
    "DIEN target attention": "its attention weighs the states of a recurrent layer",
    "DIN attention pooling": "written as a matrix product already",
    "EDCN cross with a vector": "a bridge after every layer: one layer alone doesn't collapse",
    "FatDeepFFM gate over fields": "it pools with weights, where SENet takes a mean",
    "ONN products of pairs": "they are joined side by side, not one below the other",
    "logarithmic": "no pass knows it",
    "outer products": "no pass knows them",
    "recurrent": "no pass knows it",
}


def examine(case: Any) -> dict[str, Any]:
    """What the passes said of one model."""
    import torch
    from case import as_if_trained
    from rankc.frontends.export import capture
    from rankc.optimizer.pipeline.passbase import PassContext
    from rankc.optimizer.pipeline.pipeline import Pipeline
    from rankc.optimizer.target import Target

    result: dict[str, Any] = {"library": case.library, "model": case.name, "remarks": []}
    torch.manual_seed(0)
    try:
        program = capture(as_if_trained(case.build()), case.rows(64))
    except Exception as error:
        return {**result, "error": f"{type(error).__name__}: {error}"}
    context = PassContext(target=Target.of("cpu-fp32"), strict=True)
    start = time.process_time()
    nodes = len(program.graph.nodes)
    Pipeline.parse("rounding,structure,grouping").run(program, context)
    remarks = [[str(r.kind), r.pass_name, r.message, list(r.sites)] for r in context.report.remarks]
    seconds = time.process_time() - start
    return {**result, "remarks": remarks, "nodes": nodes, "seconds": seconds}


def run_library(library: str, out: Path) -> None:
    """Examines all of one library's models, in this process."""
    import torch

    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)
    results = []
    for case in importlib.import_module(LIBRARIES[library]).CASES:
        results.append(examine(case))
        out.write_text(json.dumps(results))
        said = f"{library:14}{case.name:32}{results[-1].get('seconds', 0.0):6.1f} s\n"
        sys.stderr.write(said)


def main() -> None:
    """Runs each library in its own process and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", choices=sorted(LIBRARIES))
    parser.add_argument("--out", type=Path, help="a JSON file for one library's results")
    parser.add_argument("--results", type=Path, help="where such files are, or are to be put")
    options = parser.parse_args()
    if options.library:
        run_library(options.library, options.out)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.results or Path(temporary)
        results = []
        for library in LIBRARIES:
            file = folder / f"{library}.json"
            if not file.exists():
                command = [sys.executable, __file__, "--library", library, "--out", str(file)]
                subprocess.run(command, check=True)
            results += json.loads(file.read_text())
    PAGE.write_text(document(results))


def interactions_of(result: dict[str, Any]) -> tuple[str, ...]:
    """The kinds a model is known to have."""
    known, model = HAS[result["library"]], result["model"]
    return known.get(model, known.get(model.partition("[")[0], ()))


def seen(result: dict[str, Any], kind: str) -> tuple[str, int]:
    """What an interaction became, and at how many places; empty if it wasn't recognised."""
    for way in KINDS[kind]:
        found = [r for r in result["remarks"] if r[:2] == [way.said, way.pass_name]]
        if found:
            return way.becomes, len(found)
    return "", 0


def reason(result: dict[str, Any], kind: str) -> str:
    """Why it wasn't."""
    if "error" in result:
        return "the model can't be captured"
    passes = {way.pass_name for way in KINDS[kind]}
    missed = [r[2] for r in result["remarks"] if r[0] == "missed" and r[1] in passes]
    return "; ".join(dict.fromkeys(missed)) or _why(result["model"], kind)


def _why(model: str, kind: str) -> str:
    return WHY.get(f"{model.partition('[')[0]} {kind}") or WHY.get(kind, "not known")


def document(results: list[dict[str, Any]]) -> str:
    """The page."""
    pairs = [(result, kind) for result in results for kind in interactions_of(result)]
    versions = " and ".join(f"{library} {version(library)}" for library in LIBRARIES)
    recognised = sum(bool(seen(*pair)[0]) for pair in pairs)
    lines = [
        "# Interactions of two public libraries",
        "",
        f"Written by `make interactions`: the {len(results)} models of {versions} in the capture "
        "suite, small, after `rounding,structure,grouping` for cpu-fp32. An interaction counts "
        "once in a model, however many layers it has; which ones a model has is taken from its "
        f"paper and code. **{recognised} of {len(pairs)}** are recognised: rewritten, or named "
        "and left since no form is cheaper.",
        "",
        "| interaction | in models | recognised | becomes |",
        "|---|---:|---:|---|",
    ]
    for kind in KINDS:
        mine = [seen(result, of) for result, of in pairs if of == kind]
        became = ", or ".join(sorted({what for what, _ in mine if what}))
        lines.append(f"| {kind} | {len(mine)} | {sum(bool(w) for w, _ in mine)} | {became} |")
    lines += ["", "## What isn't, and why", "", "| library | model | interaction | why |"]
    lines.append("|---|---|---|---|")
    for result, kind in pairs:
        if not seen(result, kind)[0]:
            cells = (result["library"], result["model"], kind, reason(result, kind))
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "## What is", "", "| library | model | interaction | places | becomes |"]
    lines.append("|---|---|---|---:|---|")
    for result, kind in pairs:
        became, places = seen(result, kind)
        if became:
            cells = (result["library"], result["model"], kind, str(places), became)
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
