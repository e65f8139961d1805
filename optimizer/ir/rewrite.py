"""The only way passes change a graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from ..errors import VerifyError
from . import torchapi
from .facts import facts_of, merged, set_facts, site_of
from .printer import excerpt
from .program import Program
from .signature import BATCH, Feature
from .verifier import same_value

#: Operators whose results may differ from run to run or that do something besides computing.
_IMPURE = frozenset({"aten::bernoulli", "aten::rand", "aten::randn", "aten::native_dropout"})


class Rewriter:
    """Edits one program on behalf of one pass.

    New nodes get their shapes by fake execution and their origin from the nodes they stand for.
    Every rewrite announces itself through `site`, so that a pipeline can be limited, and bisected,
    to a single rewrite.
    """

    def __init__(
        self,
        program: Program,
        made_by: str,
        may_rewrite: Callable[[str], bool] = lambda where: True,
    ) -> None:
        self.program = program
        self.made_by = made_by
        self._may_rewrite = may_rewrite
        self._mode = torchapi.fake_mode_of(program.graph)
        self._before: fx.Node | None = None

    def site(self, node: fx.Node | str) -> bool:
        """Announces a rewrite at a node or a named place; False means: leave this one alone."""
        return self._may_rewrite(node if isinstance(node, str) else site_of(node))

    @contextmanager
    def before(self, node: fx.Node) -> Iterator[None]:
        """Nodes emitted inside are inserted before ``node``."""
        outer, self._before = self._before, node
        try:
            yield
        finally:
            self._before = outer

    def emit(
        self, target: Any, *args: Any, like: fx.Node | Sequence[fx.Node] = (), **kwargs: Any
    ) -> fx.Node:
        """Adds a node.

        Args:
            target: An operator overload or a function.
            *args: Its arguments; nodes stand for their values.
            like: The nodes it stands for, whose origins it inherits.
            **kwargs: Its keyword arguments.

        Raises:
            VerifyError: No insertion point was set with `before`.
        """
        if self._before is None:
            raise VerifyError("Rewriter.emit needs a place: use it inside `with rw.before(node):`")
        value = torchapi.fake_call(target, args, kwargs, self._mode)
        graph = self.program.graph
        with graph.inserting_before(self._before):
            node = graph.call_function(target, args, kwargs)
        node.meta["val"] = value
        self._stamp(node, like)
        return node

    def arrange(self, node: fx.Node, order: Sequence[int], like: fx.Node) -> fx.Node:
        """``node`` permuted by ``order`` and reshaped to the shape of ``like``, as its replacement.

        Nothing is emitted where that changes nothing.
        """
        if list(order) != sorted(order):
            node = self.emit(torch.ops.aten.permute.default, node, list(order), like=like)
        if same_value(node.meta["val"], like.meta["val"]):
            return node
        sizes = [size if isinstance(size, int) else -1 for size in like.meta["val"].shape]
        return self.emit(torch.ops.aten.reshape.default, node, sizes, like=like)

    def parameter(self, name: str, tensor: Tensor) -> fx.Node:
        """A node for a new parameter; ``name`` is made unique. Inserted with the other parameters.

        The node goes to the front of the graph, so it may be used anywhere.
        """
        unique, count = name, 1
        taken = {name for name, _ in self.program.module.named_buffers()}
        taken |= {name for name, _ in self.program.module.named_parameters()}
        while unique in taken or hasattr(self.program.module, unique):
            count += 1
            unique = f"{name}_{count}"
        _assign(self.program.module, unique, tensor.detach())
        return self._read(unique, tensor)

    def read(self, name: str) -> fx.Node:
        """A new node that reads an existing parameter."""
        return self._read(name, self.program.tensor(name))

    def _read(self, name: str, tensor: Tensor) -> fx.Node:
        graph = self.program.graph
        first = next(iter(graph.nodes))
        with graph.inserting_before(first):
            node = graph.get_attr(name)
        node.meta["val"] = torchapi.fake_of(tensor, self._mode)
        return node

    def set_parameter(self, name: str, tensor: Tensor) -> None:
        """Assigns a new tensor to an existing parameter and refreshes what depends on it."""
        self.set_parameters({name: tensor})

    def set_value(self, name: str, tensor: Tensor) -> None:
        """Assigns a new tensor of the same shape and dtype, so that nothing else changes.

        Raises:
            VerifyError: The shape or dtype differs.
        """
        before = self.program.tensor(name)
        if before.shape != tensor.shape or before.dtype != tensor.dtype:
            raise VerifyError(f"{self.made_by} would give {name} another shape or dtype")
        _assign(self.program.module, name, tensor.detach())

    def set_parameters(self, tensors: Mapping[str, Tensor]) -> None:
        """Assigns several at once: for sizes that must change together, as when pruning."""
        values = {name: torchapi.fake_of(t, self._mode) for name, t in tensors.items()}
        for name, tensor in tensors.items():
            _assign(self.program.module, name, tensor.detach())
        changed: list[fx.Node] = []
        for node in self.program.graph.find_nodes(op="get_attr"):
            if node.target in values:
                node.meta["val"] = values[str(node.target)]
                changed += list(node.users)
        self.refresh(changed)

    def resize(self, tensors: Mapping[str, Tensor], fix: Callable[[fx.Node], bool]) -> None:
        """Assigns parameters of other sizes and puts the graph right in one walk, as when pruning.

        Args:
            tensors: The parameters that change.
            fix: Puts a node's arguments right; what comes before it has its new size by then.
                False leaves the node as it is, dead or replaced.
        """
        for name, tensor in tensors.items():
            _assign(self.program.module, name, tensor.detach())
        nodes = list(self.program.graph.nodes)
        same = set(nodes)  # of the size they had; inference takes milliseconds a node
        for node in nodes:
            before = node.meta.get("val")
            if node.op == "get_attr" and node.target in tensors:
                node.meta["val"] = torchapi.fake_of(tensors[str(node.target)], self._mode)
            elif node.op == "call_function":
                arguments = node.args, node.kwargs
                if not fix(node):
                    continue
                if arguments == (node.args, node.kwargs) and same.issuperset(node.all_input_nodes):
                    continue
                node.meta["val"] = torchapi.fake_call(
                    node.target, node.args, node.kwargs, self._mode
                )
            if not same_value(before, node.meta.get("val")):
                same.discard(node)

    def refresh(self, nodes: Sequence[fx.Node]) -> None:
        """Re-infers the values of ``nodes`` and of everything after them."""
        pending = set(nodes)
        for node in self.program.graph.nodes:
            if node not in pending or node.op != "call_function":
                continue
            node.meta["val"] = torchapi.fake_call(node.target, node.args, node.kwargs, self._mode)
            pending |= set(node.users)

    def set_argument(self, node: fx.Node, index: int, value: Any) -> None:
        """Replaces one positional argument and re-infers what follows."""
        node.update_arg(index, value)
        set_facts(node, replace(facts_of(node), made_by=self.made_by))
        self.refresh([node])

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Lets ``new`` take the place of ``old``, which is erased.

        Raises:
            VerifyError: Their shapes or dtypes differ.
        """
        if not same_value(old.meta["val"], new.meta["val"]):
            raise VerifyError(
                f"{self.made_by} would replace {old.name} by a value of another shape or dtype\n"
                f"{excerpt(old)}\n{excerpt(new)}"
            )
        old.replace_all_uses_with(new)
        self.program.graph.erase_node(old)

    def defer(self, node: fx.Node, behind: fx.Node) -> None:
        """Moves ``node``, and what needs it, behind another node where they stand before that one.

        Raises:
            VerifyError: ``behind`` needs ``node`` itself.
        """
        order = list(self.program.graph.nodes)
        place = order.index(behind)
        moving = dict.fromkeys([node] if node in order[:place] else [])
        for later in order[:place]:
            if any(source in moving for source in later.all_input_nodes):
                moving[later] = None
        if any(source in moving for source in behind.all_input_nodes):
            raise VerifyError(f"{self.made_by}: {behind.name} needs {node.name}\n{excerpt(behind)}")
        for later in moving:
            behind.append(later)
            behind = later

    def erase(self, node: fx.Node) -> None:
        """Removes a node that nobody uses."""
        self.program.graph.erase_node(node)

    def drop_outputs(self, names: Sequence[str]) -> None:
        """Removes outputs, with their tasks; what only they used becomes dead."""
        dropped = set(names)
        signature = self.program.signature
        (output,) = self.program.graph.find_nodes(op="output")
        kept = [name for name in signature.outputs if name not in dropped]
        values = dict(zip(signature.outputs, output.args[0], strict=True))
        output.args = (tuple(values[name] for name in kept),)
        self.program.signature = replace(
            signature,
            outputs=tuple(kept),
            tasks=tuple(task for task in signature.tasks if task.output in kept),
        )

    def add_feature(self, feature: Feature) -> fx.Node:
        """A node for a new input, one value a row ``[B]``, behind the others; callers may omit it.

        It becomes a key of the one dict a model takes, or else an argument of its own.

        Raises:
            VerifyError: It has no default, or no feature tells how many rows there are.
        """
        program = self.program
        placeholders = program.graph.find_nodes(op="placeholder")
        pairs = zip(placeholders, program.signature, strict=True)
        rows = [node for node, other in pairs if other.shape[0] == BATCH]
        if feature.default is None or not rows:
            raise VerifyError(f"{self.made_by} can't add the input {feature.name} to these")
        with program.graph.inserting_after(placeholders[-1]):
            node = program.graph.placeholder(feature.name)
        value = rows[0].meta["val"]
        node.meta["val"] = value.new_empty(
            (value.shape[0],), dtype=getattr(torch, feature.dtype), requires_grad=False
        )
        signature = program.signature
        program.signature = replace(signature, features=(*signature.features, feature))
        program.inputs, program.arguments = program.inputs.with_input(
            feature.name, program.arguments
        )
        return node

    def add_output(self, name: str, node: fx.Node) -> None:
        """Returns one more value, which no task is read from."""
        program = self.program
        (output,) = program.graph.find_nodes(op="output")
        output.args = ((*output.args[0], node),)
        outputs = (*program.signature.outputs, name)
        program.signature = replace(program.signature, outputs=outputs)
        program.outputs = program.outputs.with_output(name)

    def set_output(self, name: str, node: fx.Node) -> None:
        """Returns ``node`` as the output called so; whatever else needs the old value keeps it.

        Raises:
            VerifyError: Their shapes or dtypes differ.
        """
        (output,) = self.program.graph.find_nodes(op="output")
        place = self.program.signature.outputs.index(name)
        values = list(output.args[0])
        if not same_value(values[place].meta["val"], node.meta["val"]):
            raise VerifyError(f"{self.made_by} would return {name} in another shape or dtype")
        values[place] = node
        output.args = (tuple(values),)

    def _stamp(self, node: fx.Node, like: fx.Node | Sequence[fx.Node]) -> None:
        nodes = (like,) if isinstance(like, fx.Node) else tuple(like)
        set_facts(node, merged(nodes, self.made_by))


def sweep(program: Program) -> int:
    """Erases nodes nobody uses and parameters nobody reads; returns how many nodes went."""
    graph = program.graph
    erased = 0
    for node in reversed(list(graph.nodes)):
        if node.users or node.op in ("placeholder", "output") or _is_impure(node):
            continue
        graph.erase_node(node)
        erased += 1
    _drop_unread(program)
    program.module.recompile()
    return erased


def _is_impure(node: fx.Node) -> bool:
    if not isinstance(node.target, torchapi.OpOverload):
        return False
    return node.target.name().split(".")[0] in _IMPURE


def _drop_unread(program: Program) -> None:
    """Rebuilds the module with only the parameters the graph reads."""
    module = program.module
    read = dict(program.tensors())
    held = {name for name, _ in module.named_buffers()}
    held |= {name for name, _ in module.named_parameters()}
    if held <= set(read):
        return
    program.module = torchapi.flat_graph_module(module.graph, read)


def _assign(module: torch.nn.Module, name: str, tensor: Tensor) -> None:
    """Sets a nested attribute, making empty modules on the way."""
    *path, leaf = name.split(".")
    for part in path:
        if not hasattr(module, part):
            module.add_module(part, torch.nn.Module())
        module = getattr(module, part)
    for store in (module._parameters, module._buffers):
        store.pop(leaf, None)
    module.register_buffer(leaf, tensor)
