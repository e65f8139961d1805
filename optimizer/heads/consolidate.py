"""`consolidate`: several models over one set of features as one program."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..analysis.cost import size_of
from ..capture import capture
from ..data.delimiters import ragged_of
from ..data.synthetic import synthesize
from ..errors import SignatureError
from ..ir import Feature, FeatureKind, Form, Program, Side, Signature, Structure, torchapi
from ..ir.facts import facts_of, set_facts
from ..ir.hashing import hashing_of
from ..ir.program import flatten_exported
from ..ir.signature import BATCH
from ..ir.structure import Branch, Leaf
from ..pipeline.passbase import PassContext
from ..pipeline.pipeline import Pipeline
from ..report.report import readable_bytes
from ..target import Target
from .stage_consistency import consistency

Model = nn.Module | str | Path | Program
#: Kinds that say how ids are used, not what they are.
_IDS = frozenset({FeatureKind.ID, FeatureKind.ID_LIST, FeatureKind.SEQUENCE})
#: Rows the joint program's scores are compared on with those of the models apart.
_ROWS = 256


def consolidate(
    models: Sequence[Model],
    names: Sequence[str] | None = None,
    *,
    inputs: Sequence[Any] | None = None,
    apart: Sequence[str] = (),
    stages: tuple[str, str] | None = None,
    data: Iterable[Any] | None = None,
    k: Sequence[int] = (10,),
    trust_code: bool = False,
) -> Program:
    """Makes one program of several models; give it to `optimize`.

    Features of one name become one input. Tables, layers and whole sub-networks that are the same
    bit for bit are stored and computed once; nothing else changes, so every score stays what it
    was. ``optimize(…, pipeline="share-similar{within=0.01},default")`` also shares what is nearly
    the same, within the error budget.

    Args:
        models: What `capture` takes, or captured programs.
        names: What to call them. The output ``score`` of the model ``ctr`` becomes ``ctr/score``.
            ``model0``, ``model1``, … when None.
        inputs: An example for each model, where it has no ``example_inputs()``.
        apart: Features that stay an input of each model, called ``<model>_<feature>``.
        stages: The names of an early-stage and of a final-stage model: how much of the final
            stage's top candidates the early one keeps is measured on ``data``, and told.
        data: Batches of the joint program's features, with groups, for ``stages``.
        k: The cuts for ``stages``.
        trust_code: Whether ``.pt2`` files may be opened: they are unpickled, and can do whatever
            this process can.

    Returns:
        The program, in canonical form. Called as the models are where they are called alike, else
        with one dict of features. It returns what the models return, by model. What was shared,
        and what that saved, comes among the notes of the report that `optimize` gives.

    Raises:
        SignatureError: Same-named features that aren't the same, or two outputs of one name.
        CaptureError: A model that can't be captured.
    """
    members = _members(models, names, inputs, trust_code)
    features = _merged_features(members, frozenset(apart))
    program = _joined(members, features, frozenset(apart))
    shared = program.clone()
    Pipeline.parse("canonicalize,eliminate").run(shared, PassContext(Target.of("cpu-fp32")))
    notes = [*_savings(members, shared), _agreement(members, shared, frozenset(apart))]
    shared.notes = tuple(notes)
    if stages is not None:
        found = consistency(shared, data, early=stages[0], final=stages[1], k=k)
        shared.notes += tuple(map(str, found))
    return shared


@dataclass(frozen=True)
class _Member:
    """One of the models."""

    name: str
    program: Program

    def feature(self, name: str, apart: frozenset[str]) -> str:
        """What one of its features is called among all."""
        return f"{self.name}_{name}" if name in apart else name

    def output(self, name: str) -> str:
        """What one of its outputs or tasks is called among all."""
        return f"{self.name}/{name}"


def _members(
    models: Sequence[Model],
    names: Sequence[str] | None,
    inputs: Sequence[Any] | None,
    trust_code: bool,
) -> list[_Member]:
    count = len(models)
    called = [f"model{index}" for index in range(count)] if names is None else list(names)
    examples = [None] * count if inputs is None else list(inputs)
    if not count or len(called) != count or len(examples) != count:
        raise SignatureError(
            f"{count} models, {len(called)} names and {len(examples)} examples were given; "
            "consolidating takes at least one model, and one name and example for each."
        )
    odd = [name for name in called if not str(name).isidentifier()]
    twice = sorted({name for name in called if called.count(name) > 1})
    if odd or twice:
        raise SignatureError(
            f"outputs are called model/output, so models need names of their own: {twice} are "
            "given twice."
            if twice
            else f"a model is called by letters, digits and underscores, not {odd[0]!r}."
        )
    programs = [
        model if isinstance(model, Program) else capture(model, example, trust_code=trust_code)
        for model, example in zip(models, examples, strict=True)
    ]
    return [_Member(name, program) for name, program in zip(called, programs, strict=True)]


# --- features -------------------------------------------------------------------------------------


def _merged_features(members: Sequence[_Member], apart: frozenset[str]) -> dict[str, Feature]:
    """The features of all, by name.

    Raises:
        SignatureError: Two of one name aren't the same; which, and in what they differ.
    """
    merged: dict[str, Feature] = {}
    owner: dict[str, _Member] = {}
    for member in members:
        for feature in member.program.signature:
            name = member.feature(feature.name, apart)
            delimiter = member.feature(feature.delimiter, apart) if feature.delimiter else ""
            tables = tuple(f"{member.name}.{table}" for table in feature.tables)
            own = replace(feature, name=name, delimiter=delimiter, tables=tables)
            if name not in merged:
                merged[name], owner[name] = own, member
                continue
            if name in apart or feature.name in apart:
                raise SignatureError(f"two features would be called {name!r}; rename a model.")
            difference = _difference(merged[name], own) or _hashing(owner[name], member, name)
            if difference:
                raise SignatureError(
                    f"feature {name!r} isn't the same in models {owner[name].name!r} and "
                    f"{member.name!r}: {difference}. Features of one name become one input; rename "
                    f"one of them, or give apart=({name!r},) to keep an input for each model."
                )
            merged[name] = _union(merged[name], own)
    return merged


def _difference(one: Feature, other: Feature) -> str:
    """What two features of one name differ in, or nothing."""
    if FeatureKind.UNUSED not in (one.kind, other.kind):
        ids = one.kind in _IDS and other.kind in _IDS
        if one.kind is not other.kind and not ids:
            return f"its kind is {one.kind.value!r} and {other.kind.value!r}"
        if one.cardinalities and other.cardinalities and one.axis != other.axis:
            return f"its ids are counted along dimension {one.axis} and {other.axis}"
        columns = list(zip(_limits(one, other), _limits(other, one), strict=False))
        for column, ((low, left), (least, right)) in enumerate(columns):
            where = f" in column {column}" if len(columns) > 1 else ""
            if left and right and left != right:
                return f"its ids{where} are below {left:,} and below {right:,}"
            if left and right and low != least:
                return f"its ids{where} begin at {low:,} and at {least:,}"
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        shapes = (f"{f.dtype} [{', '.join(map(str, f.shape))}]" for f in (one, other))
        return f"it is {' and '.join(shapes)}"
    needed = FeatureKind.UNUSED not in (one.kind, other.kind)
    if needed and (one.delimiter, one.default) != (other.delimiter, other.default):
        return "what delimits it, or what stands for it where it is left out, is another"
    if one.side is not other.side and Side.UNKNOWN not in (one.side, other.side):
        return f"it describes the {one.side.value} and the {other.side.value}"
    return ""


def _limits(one: Feature, other: Feature) -> tuple[tuple[int, int], ...]:
    """The least ids and the cardinalities, one a column where the other has so many."""
    limits = tuple(zip(one.least, one.cardinalities, strict=True))
    wide = max(len(one.cardinalities), len(other.cardinalities))
    return limits * wide if len(limits) == 1 else limits


def _hashing(one: _Member, other: _Member, name: str) -> str:
    """What the models do to the ids before they look them up, where that differs."""
    left, right = (hashing_of(_placeholder(member.program, name)) for member in (one, other))
    if left == right or not left or not right:
        # A model that looks nothing up, or that takes the ids as they are and has their number
        # checked above, has nothing to disagree with.
        return ""
    return f"its ids are hashed by {' and '.join(left)} and by {' and '.join(right)}"


def _placeholder(program: Program, name: str) -> fx.Node:
    found: fx.Node = next(n for n in program.graph.find_nodes(op="placeholder") if n.target == name)
    return found


def _union(one: Feature, other: Feature) -> Feature:
    """One feature that serves both."""
    used = other if one.kind is FeatureKind.UNUSED else one
    left, right = _limits(one, other), _limits(other, one)
    both = zip(left, right, strict=True) if left and right else ()
    limits = tuple(a if a[1] else b for a, b in both) or left or right
    lows = tuple(low for low, _ in limits)
    return replace(
        used,
        tables=one.tables + other.tables,
        cardinalities=tuple(high for _, high in limits),
        lows=lows if any(lows) else (),
        missing=one.missing if one.missing == other.missing else (),
        side=other.side if one.side is Side.UNKNOWN else one.side,
    )


# --- the graph ------------------------------------------------------------------------------------


class _Joined(nn.Module):
    """Runs every model on its own features, node by node, so that facts survive the export."""

    def __init__(self, graphs: Mapping[str, fx.GraphModule], takes: Mapping[str, list[int]]):
        super().__init__()
        self.models = nn.ModuleDict(graphs)
        self.takes = takes

    def forward(self, *leaves: Tensor) -> tuple[Tensor, ...]:
        results: list[Tensor] = []
        for name, graph in self.models.items():
            found = fx.Interpreter(graph).run(*(leaves[index] for index in self.takes[name]))
            results += found
        return tuple(results)


def _joined(
    members: Sequence[_Member], features: Mapping[str, Feature], apart: frozenset[str]
) -> Program:
    place = {name: index for index, name in enumerate(features)}
    graphs: dict[str, fx.GraphModule] = {}
    takes = {}
    for member in members:
        graphs[member.name] = _named(member)
        own = member.program.signature.names
        takes[member.name] = [place[member.feature(name, apart)] for name in own]
    outputs = tuple(m.output(name) for m in members for name in m.program.signature.outputs)
    tasks = tuple(
        replace(task, name=member.output(task.name), output=member.output(task.output))
        for member in members
        for task in member.program.signature.tasks
    )
    signature = Signature(tuple(features.values()), tasks, outputs)
    module = flatten_exported(
        _exported(_Joined(graphs, takes), signature), signature.names, prefix="models."
    )
    inputs, arguments = _call(members, signature, apart)
    returned = Branch(
        "dict",
        tuple(member.name for member in members),
        tuple(
            member.program.outputs.rename(
                {name: member.output(name) for name in member.program.signature.outputs}
            ).template
            for member in members
        ),
    )
    return Program(module, signature, inputs, Structure(returned), arguments, Form.CAPTURED)


def _named(member: _Member) -> fx.GraphModule:
    """A copy of the model's graph whose nodes say which model they are of."""
    copy = torchapi.shared_copy(member.program.module)
    for node in copy.graph.nodes:
        if node.op == "call_function":
            facts = facts_of(node)
            origin = tuple(f"{member.name}.{path}" for path in facts.origin) or (member.name,)
            set_facts(node, replace(facts, origin=origin))
    return copy


def _exported(joined: _Joined, signature: Signature) -> torch.export.ExportedProgram:
    """The joint graph with one dynamic batch."""
    example = synthesize(signature, 23).features
    leaves = tuple(example[name] for name in signature.names)
    batch: Any = torch.export.Dim("batch", min=0)
    auto: Any = torch.export.Dim.AUTO
    plain = not ragged_of(signature)
    for one in (batch, auto):  # torch can't always prove a guard on a named batch
        dims = tuple(
            {
                index: one if plain and size == BATCH else auto
                for index, size in enumerate(feature.shape)
                if not isinstance(size, int)
            }
            for feature in signature
        )
        try:
            with torch.no_grad(), fx.traceback.preserve_node_meta(), torchapi.silenced():
                return torch.export.export(joined, leaves, dynamic_shapes=(dims,), strict=False)
        except torchapi.UserError:
            if one is auto:
                raise
    raise AssertionError("one of the two is tried last")


def _call(
    members: Sequence[_Member], signature: Signature, apart: frozenset[str]
) -> tuple[Structure, tuple[str, ...]]:
    """How the joint program is called: as the models are, or with one dict of features."""
    templates = [
        member.program.inputs.rename(
            {name: member.feature(name, apart) for name in member.program.signature.names}
        ).template
        for member in members
    ]
    together: Any = templates[0]
    for template in templates[1:]:
        together = _together(together, template)
    # A feature at two places would have to be given twice.
    if isinstance(together, Branch) and len(Structure(together).names) == len(signature.features):
        arguments = dict.fromkeys(name for m in members for name in m.program.arguments)
        known = {str(key) for key in together.keys}
        return Structure(together), tuple(name for name in arguments if name in known)
    leaves = Branch("dict", signature.names, tuple(map(Leaf, signature.names)))
    return Structure(Branch("dict", ("features",), (leaves,))), ("features",)


def _together(one: Any, other: Any) -> Any:
    """Two nestings as one, dicts joined key by key; None where they differ."""
    if one == other:
        return one
    if not (isinstance(one, Branch) and isinstance(other, Branch)):
        return None
    if one.kind != "dict" or other.kind != "dict":
        return None
    items = dict(zip(one.keys, one.items, strict=True))
    for key, item in zip(other.keys, other.items, strict=True):
        items[key] = _together(items[key], item) if key in items else item
        if items[key] is None:
            return None
    return Branch("dict", tuple(items), tuple(items.values()))


# --- what came of it ------------------------------------------------------------------------------


def _savings(members: Sequence[_Member], shared: Program) -> Iterator[str]:
    own = [size_of(member.program) for member in members]
    now = size_of(shared)
    nbytes, flops = sum(size.nbytes for size in own), sum(size.flops for size in own)
    inputs = sum(len(member.program.signature.features) for member in members)
    names = ", ".join(member.name for member in members)
    yield (
        f"{len(members)} models in one ({names}): {len(shared.signature.features)} inputs instead "
        f"of {inputs}, {readable_bytes(now.nbytes)} instead of {readable_bytes(nbytes)}, "
        f"{now.flops:,.0f} FLOPs a row instead of {flops:,.0f}"
    )


def _agreement(members: Sequence[_Member], shared: Program, apart: frozenset[str]) -> str:
    rows = synthesize(shared.signature, _ROWS, seed=1)
    scores = shared.run(rows.features)
    differ = []
    for member in members:
        own = member.program.signature
        features = {name: rows.features[member.feature(name, apart)] for name in own.names}
        for name, expected in member.program.run(features).items():
            if not torch.equal(scores[member.output(name)], expected):
                differ.append(member.output(name))
    if not differ:
        return f"every score equals that of its model bit for bit, on {_ROWS} made-up rows"
    return f"scores of {', '.join(differ)} differ from those of their models by rounding"
