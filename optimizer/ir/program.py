"""`Program`: a ranking model as a graph that still runs in PyTorch."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from ..errors import ArtifactError, CaptureError, SignatureError
from . import (
    ops,  # noqa: F401 (it registers the dialect)
    torchapi,
)
from .forms import Form
from .scratch import written_whole
from .signature import Signature
from .structure import Structure, bind_arguments

#: Values of features by name: what a program is run on.
Features = Mapping[str, Tensor]


@dataclass
class Program:
    """A graph over core ATen and the dialect, with the contract it serves.

    The graph module is *unlifted*: parameters and buffers are attributes. Its placeholders are the
    signature's features, in order; its output is a tuple of the signature's output tensors.

    Attributes:
        module: The graph module.
        signature: The features and tasks.
        inputs: How a call of the user's model maps to features.
        outputs: How the output tensors map to what the user's model returns.
        arguments: The names of the user's ``forward`` arguments, in order.
        form: What the graph may contain.
        recipe: The passes applied so far, as pipeline text.
        notes: What its user should know of how it came to be.
    """

    module: fx.GraphModule
    signature: Signature
    inputs: Structure
    outputs: Structure
    arguments: tuple[str, ...]
    form: Form
    recipe: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def graph(self) -> fx.Graph:
        """The graph."""
        return self.module.graph

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the program as the user's model is called."""
        features = self.inputs.flatten(self.bind(args, kwargs), self.signature.optional)
        return self.outputs.unflatten(self.run(features))

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The call's arguments by name.

        Raises:
            SignatureError: Too many arguments, or one given twice.
        """
        return bind_arguments(self.arguments, args, kwargs)

    def ordered(self, features: Mapping[str, Tensor]) -> list[Tensor]:
        """Feature tensors in the order the graph takes them, defaults for those left out.

        Whatever runs the graph itself goes through here: a pass may have added a feature that the
        rows at hand were read without.
        """
        given = with_defaults(self.signature, features)
        return [given[name] for name in self.signature.names]

    def run(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The output tensors by name, from feature tensors by name, without gradients."""
        with torch.no_grad():
            results = self.module(*self.ordered(features))
        return dict(zip(self.signature.outputs, results, strict=True))

    def clone(self) -> Program:
        """A copy whose graph is its own and whose parameter tensors are shared.

        Passes assign new tensors and never write into old ones, so sharing is safe, and a
        snapshot of a model with large tables costs nothing.
        """
        return replace(self, module=torchapi.shared_copy(self.module))

    def restore(self, snapshot: Program) -> None:
        """Takes over everything of ``snapshot``, which must not be used afterwards."""
        for name in vars(snapshot):
            setattr(self, name, getattr(snapshot, name))

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Parameters and buffers the graph reads, each once, by name."""
        seen: set[str] = set()
        for node in self.graph.find_nodes(op="get_attr"):
            name = str(node.target)
            if name not in seen:
                seen.add(name)
                yield name, self.tensor(name)

    def tensor(self, name: str) -> Tensor:
        """The parameter or buffer called ``name``."""
        found: Any = self.module
        for part in name.split("."):
            found = getattr(found, part)
        assert isinstance(found, Tensor)
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of all parameters and buffers."""
        storages = {t.untyped_storage().data_ptr(): t for _, t in self.tensors()}
        return sum(t.numel() * t.element_size() for t in storages.values())

    def fingerprint(self) -> str:
        """A hash of graph, metadata, signature and parameter contents; equal means equal."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(self.structure_text().encode())
        for name, tensor in self.tensors():
            digest.update(name.encode())
            digest.update(content_hash(tensor))
        return digest.hexdigest()

    def structure_text(self) -> str:
        """The graph, its facts and the signature as text, with nodes numbered by position."""
        number = {node: f"%{index}" for index, node in enumerate(self.graph.nodes)}
        lines = [json.dumps(self.signature.to_json()), self.form.value]
        for node in self.graph.nodes:
            target = node.target if isinstance(node.target, str) else str(node.target)
            args = fx.map_arg(node.args, lambda n: _Reference(number[n]))  # type: ignore[arg-type,return-value]
            kwargs = fx.map_arg(node.kwargs, lambda n: _Reference(number[n]))  # type: ignore[arg-type,return-value]
            facts = (node.meta.get("custom") or {}).get("rankc", {})
            lines.append(
                f"{number[node]} {node.op} {target} {args} {dict(kwargs)} {facts.get('precision')}"
            )
        return "\n".join(lines)

    def to_python(self) -> str:
        """The graph as readable PyTorch code."""
        return str(self.module.print_readable(print_output=False))

    def example(self) -> tuple[tuple[Tensor, ...], tuple[dict[int, Any], ...]]:
        """Zeros of the features' shapes, and which of their dimensions are dynamic."""
        values = [node.meta["val"] for node in self.graph.find_nodes(op="placeholder")]
        return tuple(map(_materialize, values)), tuple(map(_dynamic_dims, values))

    def exported(self) -> torch.export.ExportedProgram:
        """The program as an ``ExportedProgram``, batch still dynamic; a boundary cost (seconds)."""
        example, dynamic = self.example()
        with torch.no_grad(), fx.traceback.preserve_node_meta(), torchapi.silenced():
            try:
                return torch.export.export(
                    _Callable(self.module), example, dynamic_shapes=(dynamic,), strict=False
                )
            except torchapi.UserError:
                # torch can't prove a guard, or one that the smallest batches break; which batches
                # the program takes was found by running it when it was captured.
                open_dims = tuple(dict.fromkeys(dims, torch.export.Dim.AUTO) for dims in dynamic)
                found = torch.export.export(
                    _Callable(self.module), example, dynamic_shapes=(open_dims,), strict=False
                )
                if _fixes_a_size(found, dynamic):
                    raise
                return found

    def save(self, path: str | Path) -> None:
        """Writes the program to one ``.pt2`` file; one that is there stays until that is done.

        Raises:
            ArtifactError: It can't be written.
        """
        contract = {
            "signature": self.signature.to_json(),
            "inputs": self.inputs.to_json(),
            "outputs": self.outputs.to_json(),
            "arguments": list(self.arguments),
            "form": self.form.value,
            "recipe": list(self.recipe),
            "notes": list(self.notes),
        }
        extra = {"rankc.json": json.dumps(contract)}
        exported = self.exported()
        try:
            with written_whole(Path(path)) as place:
                with _Sink(place, "w") as sink:
                    torch.export.save(exported, sink, extra_files=extra)
                if sink.error is not None:
                    raise sink.error
        except OSError as error:
            raise ArtifactError(f"{path} can't be written: {error}") from error

    @classmethod
    def load(cls, path: str | Path, *, trust_code: bool = False) -> Program:
        """Reads a program that `save` wrote.

        Args:
            path: The file.
            trust_code: That whoever wrote the file is trusted: PyTorch unpickles it, so that it can
                do whatever this process can.

        Raises:
            CaptureError: It isn't trusted.
            SignatureError: The file holds no rankc program.
        """
        if not trust_code:
            raise CaptureError(
                f"{path} may hold code: PyTorch unpickles a .pt2, which runs whatever its author "
                "put in. If you made it or trust who did, give trust_code=True."
            )
        extra: dict[str, Any] = {"rankc.json": ""}
        exported = torch.export.load(path, extra_files=extra)
        if not extra["rankc.json"]:
            raise SignatureError(f"{path} is an exported program, but not one that rankc saved.")
        contract = json.loads(extra["rankc.json"])
        signature = Signature.from_json(contract["signature"])
        return cls(
            module=flatten_exported(exported, signature.names, prefix="program."),
            signature=signature,
            inputs=Structure.from_json(contract["inputs"]),
            outputs=Structure.from_json(contract["outputs"]),
            arguments=tuple(contract["arguments"]),
            form=Form(contract["form"]),
            recipe=tuple(contract["recipe"]),
            notes=tuple(contract.get("notes", ())),
        )


class _Sink(io.FileIO):
    """A file that keeps the first error of writing; torch's writer would end the process for it."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        """Writes all of it, or nothing any more after an error."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while self.error is None and rest:
                rest = rest[super().write(rest) or 0 :]
        except OSError as error:
            self.error = error
        return size


_HALVES = (torch.bfloat16, torch.float16)


def with_defaults(signature: Signature, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The features, with the default in every row of those that were left out.

    Half precision is widened, which is exact, where the program computes in float32.
    """
    found = dict(features)
    for feature in signature:
        given = found.get(feature.name)
        if feature.dtype == "float32" and isinstance(given, Tensor) and given.dtype in _HALVES:
            found[feature.name] = given.float()
    for feature, shape in signature.left_out(features):
        dtype: torch.dtype = getattr(torch, feature.dtype)
        found[feature.name] = torch.full(shape, feature.default or 0.0, dtype=dtype)
    return found


def flatten_exported(
    exported: torch.export.ExportedProgram, names: tuple[str, ...], prefix: str
) -> fx.GraphModule:
    """The unlifted graph of an exported flat module, inputs named, ``prefix`` cut off parameters.

    Args:
        exported: A program of flat tensor inputs and a flat tuple of outputs.
        names: Names for its inputs, in order.
        prefix: What the exporting wrapper put before every parameter name.
    """
    module = torchapi.unlift(exported)
    attributes: dict[str, Any] = {}
    for node in list(module.graph.nodes):
        if node.op == "get_attr":
            if not node.users:
                module.graph.erase_node(node)
                continue
            value = _lookup(module, str(node.target))
            node.target = str(node.target).removeprefix(prefix)
            attributes[node.target] = _frozen(value)
    placeholders = module.graph.find_nodes(op="placeholder")
    for node, name in zip(placeholders, names, strict=True):
        node.target = name
        node._rename(name)
    flat = torchapi.flat_graph_module(module.graph, attributes)
    output = next(iter(flat.graph.find_nodes(op="output")))
    output.args = (tuple(output.args[0]),)
    flat.recompile()
    return flat


class _Callable(torch.nn.Module):
    """Runs a graph node by node, so that each node's facts reach what it is exported as."""

    def __init__(self, program: fx.GraphModule) -> None:
        super().__init__()
        self.program = program

    def forward(self, *leaves: Tensor) -> Any:
        return fx.Interpreter(self.program).run(*leaves)


class _Reference:
    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _lookup(module: torch.nn.Module, name: str) -> Any:
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _frozen(value: Any) -> Any:
    """A parameter that needs no gradient and still shares its storage with the user's."""
    return value.detach() if isinstance(value, Tensor) else value


_HASHES = torchapi.WeakIdKeyDictionary()


def content_hash(tensor: Tensor) -> bytes:
    """A hash of shape, dtype and bytes; remembered until the tensor is written to."""
    # Tensors made under torch.inference_mode don't count their versions, and can't be written to.
    written = 0 if tensor.is_inference() else tensor._version
    version, known = _HASHES.get(tensor, (-1, b""))
    if version == written:
        return bytes(known)
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
    data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    digest.update(data.numpy().data)
    _HASHES[tensor] = (written, digest.digest())
    return digest.digest()


def _sizes(value: Any) -> list[Any]:
    return list(value.shape)


def _materialize(value: Any) -> Tensor:
    """A real tensor of the fake one's shape; dynamic sizes take their hints."""
    sizes = [size if isinstance(size, int) else int(size.node.hint) for size in _sizes(value)]
    return torch.zeros(sizes, dtype=value.dtype)


def _dynamic_dims(value: Any) -> dict[int, Any]:
    """Which dimensions are dynamic, named by their symbols, so that equal ones stay equal."""
    return {
        index: torch.export.Dim(str(size), min=0) if _is_plain(size) else torch.export.Dim.AUTO
        for index, size in enumerate(_sizes(value))
        if not isinstance(size, int)
    }


def _fixes_a_size(
    exported: torch.export.ExportedProgram, dynamic: tuple[dict[int, Any], ...]
) -> bool:
    """Whether a dimension that was dynamic has become a number."""
    names = exported.graph_signature.user_inputs
    values = [n.meta["val"] for n in exported.graph.find_nodes(op="placeholder") if n.name in names]
    return any(
        isinstance(value.shape[index], int)
        for value, dims in zip(values, dynamic, strict=True)
        for index in dims
    )


def _is_plain(size: Any) -> bool:
    return str(size).isidentifier()
