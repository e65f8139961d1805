"""Puts lookups, and what is done with their rows, into native operators.

Where something uses a value whose rows are made of lookups (see `rows`), one operator makes it:
``rankc.Features``, or ``rankc.FeatureCodes`` if all that uses it is a QuantizeLinear. The nodes it
stands for become its body, as a function of the model, so that a runtime without the library
computes what it did before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from . import DOMAIN
from .ids import Column
from .rows import Products, Row, Tracer, Vector, vectors_of
from .values import dims

#: Lookups may be repeated for the sake of fusing by this much; otherwise their rows are made once.
_REPEATED = 1.25
#: Constants up to this size are written into a function's body; larger ones become its inputs.
_SMALL_BYTES = 65536
_DENSE, _BAGS, _OFFSETS = 0, 1, 2
_FLOATS, _HALVES, _BYTES, _NIBBLES = 0, 1, 2, 3


def fuse_natively(model: ir.Model) -> dict[str, int]:
    """Rewrites a model in place, after `fuse_for_onnxruntime`.

    Returns:
        How many operators were made, by kind: ``native-features``.
    """
    roots = _roots_worth_it(model.graph)
    # All are made from the graph as it is, so that none has another's call in its body.
    calls = [_call_for(value, row, str(count)) for count, (value, row) in enumerate(roots.items())]
    for call in calls:
        call.insert(model)
    if roots:
        model.opset_imports[DOMAIN] = 1
        model.ir_version = max(model.ir_version, 10)  # the first with functions of one name
        RemoveUnusedNodesPass()(model)
    return {"native-features": len(roots)}


def _roots_worth_it(graph: ir.Graph) -> dict[ir.Value, Row]:
    """The values to make natively, and what they are made of."""
    opaque: frozenset[ir.Value] = frozenset()
    while True:
        tracer = Tracer(opaque)
        roots = _roots(graph, tracer)
        more = _made_whole(tracer, roots) - opaque or _repeated(tracer, roots) - opaque
        if not more:
            return _worth_it(tracer, roots)
        opaque |= more


def _roots(graph: ir.Graph, tracer: Tracer) -> dict[ir.Value, Row]:
    """The values made of vectors that something uses as they are."""
    roots: dict[ir.Value, Row] = {}
    for node in graph:
        for value in node.outputs:
            row = tracer.made(value) if value.dtype == ir.DataType.FLOAT else None
            if row is None or (not _lookups(row) and not _products(row) and not _codes_of(value)):
                continue
            absorbed = [_absorbs(tracer, use.node, value) for use in value.uses()]
            if value.is_graph_output() or not all(absorbed):
                roots[value] = row
    return roots


def _absorbs(tracer: Tracer, user: ir.Node, value: ir.Value) -> bool:
    """Whether a user makes something that is made of the value's own parts."""
    for result in user.outputs:
        row = tracer.made(result)
        if row is not None:
            return value not in {one for vector in vectors_of(row) for one in vector.read}
        if user.op_type in ("Transpose", "MatMul", "GatherND", "Gather") and result.uses():
            return all(_absorbs(tracer, use.node, value) for use in result.uses())
    return False


def _made_whole(tracer: Tracer, roots: dict[ir.Value, Row]) -> set[ir.Value]:
    """Values that are made anyway, so that what else is made of them may read them."""
    return {
        value for value in roots if any(_absorbs(tracer, use.node, value) for use in value.uses())
    }


def _repeated(tracer: Tracer, roots: dict[ir.Value, Row]) -> set[ir.Value]:
    """Lookups that would be repeated too often if all that uses them looked up for itself."""
    wanted = Counter(key for row in roots.values() for key in _ids(row))
    return {
        value
        for value, row in tracer.lookups.items()
        if sum(wanted[key] for key in _ids(row)) > _REPEATED * len(row)
    }


def _worth_it(tracer: Tracer, roots: dict[ir.Value, Row]) -> dict[ir.Value, Row]:
    """The values for which an operator beats what it stands for.

    ONNX Runtime looks one row of floats up as fast; that is made natively only where the lookup it
    is part of has other users that gain.
    """
    gain = {value: row for value, row in roots.items() if _gains(row)}
    taken = set().union(*map(_ids, gain.values()))
    for lookup in tracer.lookups.values():
        if not taken.isdisjoint(_ids(lookup)):
            taken |= _ids(lookup)
    return {
        value: row
        for value, row in roots.items()
        if value in gain or not taken.isdisjoint(_ids(row))
    }


def _gains(row: Row) -> bool:
    """Whether it is more than one row of a table of floats: several, a bag, codes, products."""
    lookups = _lookups(row)
    plain = all(
        len(one.ids) == 1 and one.offsets is None and _coding(one) == _FLOATS for one in lookups
    )
    dense = {part.source for part in vectors_of(row) if not part.is_lookup}
    return not plain or bool(_products(row)) or len(dense) + len(lookups) > 1


def _lookups(row: Row) -> list[Vector]:
    return [part for part in vectors_of(row) if part.is_lookup]


def _products(row: Row) -> list[Products]:
    return [part for part in row if isinstance(part, Products)]


def _ids(row: Row) -> set[tuple[ir.Value, Column]]:
    """The lookups of a row: which table, and which ids."""
    return {(part.source, one) for part in _lookups(row) for one in part.ids}


@dataclass
class _Segment:
    """Neighbouring vectors that one step of the kernel makes."""

    interacts: bool
    vectors: list[Vector] = field(default_factory=list)


def _segments(row: Row) -> list[_Segment]:
    segments: list[_Segment] = []
    for part in row:
        interacts = isinstance(part, Products)
        for vector in part.vectors if isinstance(part, Products) else (part,):
            last = segments[-1] if segments else None
            new = last is None or last.interacts != interacts
            if last is None or new or not last.vectors[-1].continued_by(vector):
                last = _Segment(interacts)
                segments.append(last)
            last.vectors.append(vector)
    return segments


class _Plan:
    """What the kernel is told (``Segment::read`` in features.cpp), and the inputs it names."""

    def __init__(self, row: Row) -> None:
        self.inputs: list[ir.Value] = []
        segments = _segments(row)
        self.numbers = [number for segment in segments for number in self._of(segment)]
        self.factors = [segment.vectors[0].factor for segment in segments]
        vectors = [vector for segment in segments for vector in segment.vectors]
        columns = [column for vector in vectors for column in vector.ids]
        self.limits = [-one.limit if one.wraps else one.limit for one in columns]

    def _of(self, segment: _Segment) -> list[int]:
        first, count = segment.vectors[0], len(segment.vectors)
        head = [
            *(int(segment.interacts), self._kind(first), _coding(first)),
            *(first.width, self._input(first.source)),
        ]
        if not first.is_lookup:
            return [*head, -1, -1, -1, -1, -1, first.index, 0, count, *[1] * count, 0]
        begin = int(first.has_end) if first.offsets else first.ids[0].index
        bags = [len(vector.ids) for vector in segment.vectors]
        shifts = [one.shift for vector in segment.vectors for one in vector.ids]
        return [
            *head,
            self._input(first.ids[0].matrix),
            self._input(first.scales),
            self._input(first.weights[0].matrix if first.weights else None),
            self._input(first.divisor),
            self._input(first.offsets),
            begin,
            first.weights[0].index if first.weights else 0,
            *(count, *bags),
            *(len(shifts), *shifts),
        ]

    @staticmethod
    def _kind(vector: Vector) -> int:
        if not vector.is_lookup:
            return _DENSE
        return _BAGS if vector.offsets is None else _OFFSETS

    def _input(self, value: ir.Value | None) -> int:
        if value is None:
            return -1
        if value not in self.inputs:
            self.inputs.append(value)
        return self.inputs.index(value)


def _coding(vector: Vector) -> int:
    """How rows are stored (``Coding`` in kernels.h)."""
    if vector.scales is None:
        return _FLOATS if vector.source.dtype == ir.DataType.FLOAT else _HALVES
    return _BYTES if vector.scales.dtype == ir.DataType.FLOAT else _NIBBLES


@dataclass(frozen=True)
class _Call:
    """A call of a native operator, the function it calls, and the value it makes instead."""

    node: ir.Node
    function: ir.Function
    replaced: ir.Value

    def insert(self, model: ir.Model) -> None:
        """Puts the call where the value was made."""
        last, (made,) = self.replaced.producer(), self.node.outputs
        assert last is not None
        model.graph.insert_before(last, self.node)
        self.replaced.replace_all_uses_with(made, replace_graph_outputs=True)
        model.functions[self.function.identifier()] = self.function


def _call_for(value: ir.Value, row: Row, overload: str) -> _Call:
    plan = _Plan(row)
    pairs = [one for part in _products(row) for pair in part.pairs for one in pair]
    attributes: list[ir.Attr] = [
        ir.AttrInt64s("plan", plan.numbers),
        ir.AttrFloat32s("factors", plan.factors),
        ir.AttrInt64s("shape", dims(value)[1:]),
    ]
    if any(plan.limits):
        attributes.append(ir.AttrInt64s("limits", plan.limits))
    if pairs:
        attributes.append(ir.AttrInt64s("pairs", pairs))
    if any(part.elementwise for part in _products(row)):
        attributes.append(ir.AttrInt64("elementwise", 1))
    codes = _codes_of(value)
    if codes is not None:
        value, scale, zero_point = codes
        attributes += [ir.AttrFloat32("scale", scale), ir.AttrInt64("zero_point", zero_point)]
    name = "Features" if codes is None else "FeatureCodes"
    last = value.producer()
    assert last is not None
    function, inputs = _outlined(value, plan.inputs, name, overload, attributes)
    node = ir.Node(
        DOMAIN,
        name,
        inputs,
        attributes,
        overload=overload,
        outputs=[ir.Value(name=value.name, shape=value.shape, type=value.type)],
        metadata_props=dict(last.metadata_props),
    )
    return _Call(node, function, value)


def _codes_of(value: ir.Value) -> tuple[ir.Value, float, int] | None:
    """What quantizes a value, if it is all that uses it: to uint8, by one constant scale."""
    users = [use.node for use in value.uses()]
    if len(users) != 1 or value.is_graph_output() or users[0].op_type != "QuantizeLinear":
        return None
    (node,) = users
    scale, zero = [*(None if one is None else one.const_value for one in node.inputs[1:]), None][:2]
    if scale is None or zero is None or scale.size != 1 or scale.dtype != ir.DataType.FLOAT:
        return None
    if zero.dtype != ir.DataType.UINT8:
        return None
    return node.outputs[0], float(scale.numpy().item()), int(zero.numpy().item())


def _outlined(
    value: ir.Value,
    inputs: Sequence[ir.Value],
    name: str,
    overload: str,
    attributes: Sequence[ir.Attr],
) -> tuple[ir.Function, list[ir.Value]]:
    """The nodes between some values and a value as a function, and what it is called with.

    The call may have more inputs than were given: values the body needs and the kernel doesn't.
    """
    leaves = list(inputs)
    copies = {leaf: ir.Value(name=f"input_{index}") for index, leaf in enumerate(leaves)}
    nodes: list[ir.Node] = []

    def copy(wanted: ir.Value) -> ir.Value:
        if wanted in copies:
            return copies[wanted]
        node, constant = wanted.producer(), wanted.const_value
        olds: Sequence[ir.Value] = (wanted,)
        if node is not None:
            sources = [None if one is None else copy(one) for one in node.inputs]
            settings, olds = node.attributes.values(), node.outputs
            new = ir.Node(
                node.domain,
                node.op_type,
                sources,
                settings,
                num_outputs=len(olds),
                name=node.name,  # runtimes name what refuses ids
            )
        elif constant is not None and constant.nbytes <= _SMALL_BYTES:
            new = ir.Node("", "Constant", [], [ir.AttrTensor("value", constant)])
        else:
            copies[wanted] = ir.Value(name=f"input_{len(leaves)}")
            leaves.append(wanted)
            return copies[wanted]
        for old, made in zip(olds, new.outputs, strict=True):
            made.name = f"value_{len(copies)}"
            copies[old] = made
        nodes.append(new)
        return copies[wanted]

    result = copy(value)
    opset = {"": value.graph.opset_imports[""]} if isinstance(value.graph, ir.Graph) else {}
    graph = ir.Graph([copies[one] for one in leaves], [result], nodes=nodes, opset_imports=opset)
    declared = [ir.Attr(one.name, one.type, None) for one in attributes]
    return ir.Function(DOMAIN, name, overload, graph=graph, attributes=declared), leaves
