"""What the user says about a captured program: a signature of their own, names of outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from ..optimizer.compare.missing import with_missing
from ..optimizer.errors import SignatureError
from ..optimizer.ir import Program, Signature
from ..optimizer.ir.bounds import bound_lookups
from ..optimizer.ir.structure import Branch, Leaf, Structure
from .narrow_integers import compute_in_32_bits


def with_contract(
    program: Program,
    signature: Signature | None,
    outputs: tuple[str, ...] | None,
    example: Mapping[str, Tensor] | None = None,
) -> Program:
    """The program under a given signature, its outputs renamed or picked, its lookups bounded.

    Args:
        program: What was captured.
        signature: Overrides the inferred one.
        outputs: Names of the outputs, in order, or those to keep.
        example: The user's rows, by feature, where there are any.

    Raises:
        SignatureError: It doesn't fit the program.
    """
    program = _with_contract(program, signature, outputs)
    compute_in_32_bits(program)
    bound_lookups(program)
    return with_missing(program, example)


def _with_contract(
    program: Program, signature: Signature | None, outputs: tuple[str, ...] | None
) -> Program:
    if signature is not None:
        if signature.names != program.signature.names:
            raise SignatureError(
                f"the signature's features are {list(signature.names)}, the model's are "
                f"{list(program.signature.names)}."
            )
        unknown = [t.name for t in signature.tasks if t.output not in program.signature.outputs]
        if unknown:
            raise SignatureError(
                f"the signature's tasks {unknown} read outputs the model doesn't have; it has "
                f"{list(program.signature.outputs)}."
            )
        program.signature = replace(signature, outputs=program.signature.outputs)
    if outputs is None:
        return program
    have = program.signature.outputs
    if (
        not outputs
        or len(set(outputs)) != len(outputs)
        or set(outputs) & set(program.signature.names)
    ):
        raise SignatureError(
            f"outputs={list(outputs)} must be names, each once, and none that a feature has."
        )
    if set(outputs) <= set(have):
        _check_served(program, outputs)
        return _keep_outputs(program, outputs)
    if len(outputs) == len(have):
        names = dict(zip(have, outputs, strict=True))
        program.outputs = program.outputs.rename(names)
        program.signature = replace(
            program.signature,
            outputs=tuple(outputs),
            tasks=tuple(
                replace(t, output=names[t.output], name=t.name.replace(t.output, names[t.output]))
                for t in program.signature.tasks
            ),
        )
        return program
    raise SignatureError(
        f"outputs={list(outputs)} neither names the model's {len(have)} outputs in order nor "
        f"picks from {list(have)}."
    )


def _check_served(program: Program, outputs: tuple[str, ...]) -> None:
    """Outputs that are asked for by name are served.

    Raises:
        SignatureError: One is marked auxiliary in a given signature.
    """
    both = [t.name for t in program.signature.tasks if t.auxiliary and t.output in outputs]
    if both:
        raise SignatureError(
            f"outputs= asks for tasks {both}, and the signature marks them auxiliary, which are "
            "not served. Leave them out of outputs=, or make them auxiliary=False."
        )


def _keep_outputs(program: Program, kept: tuple[str, ...]) -> Program:
    from ..optimizer.ir import Rewriter, sweep

    dropped = [name for name in program.signature.outputs if name not in kept]
    if dropped:
        Rewriter(program, "outputs").drop_outputs(dropped)
        sweep(program)
        names = program.signature.outputs
        program.outputs = Structure(Branch("dict", names, tuple(map(Leaf, names))))
    return program
