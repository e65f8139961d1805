"""What a backend is: it says what it takes, builds files, and opens them to run."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from .errors import TargetError, UnsupportedError
from .formats import LINEAR
from .runtime import Runtime
from .target import Target

if TYPE_CHECKING:
    from torch import Tensor, fx

    from .ir.program import Program


@dataclass(frozen=True)
class Built:
    """What a backend wrote.

    Attributes:
        files: The files, relative to the folder.
        versions: Of the libraries that wrote them.
        notes: Sentences for the report.
        fused: What the backend fused, by kind.
        unmet: What was planned and doesn't run so; with ``strict`` the build is refused for it.
    """

    files: tuple[str, ...]
    versions: Mapping[str, str]
    notes: tuple[str, ...] = ()
    fused: Mapping[str, int] = field(default_factory=dict)
    unmet: tuple[str, ...] = ()

    def require_plan(self, name: str) -> None:
        """Raises if something doesn't run as planned.

        Raises:
            TargetError: What, and what runs instead.
        """
        if self.unmet:
            raise TargetError(f"{name} doesn't keep the plan: {'; '.join(self.unmet)}")


@dataclass(frozen=True)
class Here:
    """What a backend can do for a target on this machine.

    Attributes:
        built: What can be built; empty for nothing.
        run: How what was built can be run; empty for not at all.
    """

    built: str
    run: str


class Backend(Runtime):
    """Turns programs into files, and runs them."""

    #: Whether it can time parts of a program on this machine (`seconds_apart`).
    times: ClassVar[bool] = False

    def formats(self, target: Target) -> tuple[str, ...]:
        """The target's formats for linears that the backend has a form for, and that pay there."""
        return tuple(name for name in target.formats if self.name not in LINEAR[name].lacking)

    def versions(self) -> dict[str, str]:
        """Of the libraries that build and run."""
        return {}

    def seconds_apart(
        self,
        program: Program,
        target: Target,
        features: Mapping[str, Tensor],
        rows: Mapping[str, Sequence[int]],
    ) -> dict[str, dict[int, float]]:
        """CPU seconds a call of each output alone, one thread.

        Args:
            program: Whose output ``i`` depends on input ``i`` alone.
            target: What it would be built for.
            features: Rows of each input.
            rows: How many of them to time, by input.

        Returns:
            ``{input: {rows: seconds}}``.
        """
        raise TargetError(f"{self.name} times nothing")

    @abstractmethod
    def supports(self, node: fx.Node, target: Target) -> str | None:
        """None if the backend takes the node for that target, or why it doesn't."""

    def lacks(self, program: Program) -> str:
        """Why it has no form for a program of one operator; empty if it has one.

        Raises:
            TargetError: What it needs to tell isn't installed.
        """
        return ""

    @abstractmethod
    def build(
        self, program: Program, target: Target, folder: Path, metadata: Mapping[str, str]
    ) -> Built:
        """Writes the program into ``folder``.

        Args:
            program: In canonical form.
            target: What it is built for.
            folder: An empty folder.
            metadata: Stored inside the file, where its format can.

        Raises:
            UnsupportedError: A node the backend doesn't take, by the user's name of it.
        """

    def build_beside(
        self,
        entry: str,
        program: Program,
        target: Target,
        folder: Path,
        metadata: Mapping[str, str],
    ) -> Built:
        """Writes a further program beside what `build` wrote; tensors of both are stored once.

        Args:
            entry: Its name, by which `open_beside` finds it.
            program: In canonical form.
            target: What it is built for.
            folder: Where `build` wrote.
            metadata: Stored inside the file, where its format can.

        Raises:
            UnsupportedError: A node the backend doesn't take; or it holds one program a folder.
        """
        raise UnsupportedError(f"{self.name} has no entry for requests, only one for flat batches")

    def missing(self) -> str:
        """The pip line for what a build needs and isn't installed; empty if nothing is missing."""
        return ""

    def here(self, target: Target) -> Here:
        """What can be built for the target here, and how it can be run here."""
        return Here("", "") if self.missing() else Here(self.name, "yes")

    def complete(
        self, folder: Path, made: Path, target: Target, batch_sizes: Sequence[int]
    ) -> tuple[str, ...]:
        """Builds what of a saved artifact has to be built on the machine that serves it.

        Args:
            folder: An artifact this backend wrote; nothing is written there.
            made: An empty folder for what is added or changed.
            target: Its target.
            batch_sizes: The batch sizes it serves.

        Returns:
            The files that were written.

        Raises:
            TargetError: It can't be built here.
        """
        return ()

    def refusals(self, program: Program, target: Target) -> list[tuple[fx.Node, str]]:
        """The nodes the backend doesn't take, and why."""
        return [
            (node, reason)
            for node in program.graph.nodes
            if node.op == "call_function"
            for reason in [self.supports(node, target)]
            if reason is not None
        ]

    def require(self, program: Program, target: Target) -> None:
        """Raises unless the backend takes every node.

        Raises:
            UnsupportedError: Which nodes, and why.
        """
        refused = self.refusals(program, target)
        if refused:
            from .ir.facts import site_of  # a backend is defined, and runs, without torch

            lines = [f"  {site_of(node)}: {reason}{_place(node)}" for node, reason in refused[:8]]
            raise UnsupportedError(
                f"{self.name} can't build {len(refused)} nodes for {target.name}:\n"
                + "\n".join(lines)
            )


def _place(node: fx.Node) -> str:
    """Its operator and the user's line, where that is known."""
    from .ir.facts import facts_of

    source = facts_of(node).source
    return f" ({node.target}, {source})" if source else ""
