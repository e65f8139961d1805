"""factorize-linear: a wide linear as two narrow ones, where that is faster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, fx

from ..optimizer.analysis.cost import cost_of, elements_of
from ..optimizer.analysis.sites import inputs_of, is_plain_linear, linear_sites
from ..optimizer.formats import UNPLACED
from ..optimizer.ir import Program, Rewriter, sweep
from ..optimizer.ir.facts import site_of
from ..optimizer.ir.pattern import argument, parameter_name
from ..optimizer.pipeline.passbase import Exactness, Pass, PassContext, Skip
from ..optimizer.precision.kernel_times import Kernel, KernelTimes, Trial
from ..optimizer.pruning.moments import Moments, input_moments
from ..optimizer.pruning.options import Option, choose
from ..optimizer.report.records import SiteRecord

_aten = torch.ops.aten
#: Shares of the FLOPs that two linears may take, each tried.
_SHARES = (0.75, 0.5, 0.35, 0.2)
#: Two linears must be faster by this share: less is noise of the measurement.
_FASTER = 0.1
#: Of the mean variance of the inputs, added to each.
_RIDGE = 1e-4


@dataclass(frozen=True)
class FactorizeLinear(Pass):
    """Replaces a linear by two over fewer units between, where they are fewer FLOPs and faster.

    Method: of all weights of a rank the one whose outputs on real inputs are nearest (the singular
    vectors of the weight times the root of the inputs' covariance; as SVD-LLM, 2403.07378). Ranks
    are whole tiles of the target. Times are measured where the target is at hand, else estimated.
    Loses: the outputs beyond the rank; judged under the budget, of which it may use ``share``.
    Requires: CANONICAL.
    Misses when: there is no data, two linears aren't faster, or its outputs need their full rank.
    It is in no pipeline unless it is asked for.
    """

    name: ClassVar[str] = "factorize-linear"
    exactness: ClassVar[Exactness] = Exactness.LOSSY
    idempotent: ClassVar[bool] = False
    share: float = 0.5

    def check(self, program: Program, ctx: PassContext) -> None:
        """Skips runs without data."""
        if ctx.judge is None or not ctx.calibration:
            raise Skip("there is no data to tell which ranks a linear's outputs need")

    def run(self, program: Program, ctx: PassContext) -> None:
        """Times ranks, measures what each loses, and takes the cheapest that pass together."""
        judge = ctx.judge
        assert judge is not None
        sites = {node.name: node for node in linear_sites(program) if _is_alone(node)}
        moments = input_moments(program, ctx.calibration)
        options = []
        for node in sites.values():
            faster = self._faster(program, node, ctx)
            if not faster:
                ctx.missed("two linears aren't faster", node)
            for rank, seconds in faster.items():
                two = _factors(program, node, rank, moments[node.name])
                lost = judge.damages(_replaced(program, {node.name: two}))
                options.append(_Rank(node.name, seconds, lost, rank, two))
        room = {task: self.share * limit for task, limit in judge.allowances().items()}

        def passes(chosen: Sequence[_Rank]) -> bool:
            trial = _replaced(program, {option.place: option.two for option in chosen})
            return judge.promises(trial)

        rw = ctx.rewriter(program)
        chosen = [o for o in choose(options, room, passes) if rw.site(sites[o.place])]
        _record(ctx, program, sites, options, chosen)
        for option in chosen:
            _replace(rw, sites[option.place], option.two)
        if chosen:
            ctx.applied(f"wrote {len(chosen)} linears as two", *(sites[o.place] for o in chosen))

    def _faster(self, program: Program, node: fx.Node, ctx: PassContext) -> dict[int, float]:
        """Ranks at which two linears are faster, and the seconds each saves."""
        outputs, inputs = program.tensor(str(parameter_name(node.args[1]))).shape
        ranks = {
            int(share * inputs * outputs / (inputs + outputs)) // ctx.target.tile * ctx.target.tile
            for share in _SHARES
        }
        rows = elements_of(node, max(ctx.batch_sizes)) / outputs
        whole = Kernel.of(node, None, rows)
        two = {
            rank: (
                replace(whole, outputs=rank, bias=False, relu=False),
                replace(whole, inputs=rank),
            )
            for rank in sorted(ranks - {0})
        }
        if KernelTimes.of(ctx).measured and not ctx.target.formats:
            self._measure(program, node, [whole, *(k for pair in two.values() for k in pair)], ctx)
        low = ctx.target.formats[0] if ctx.target.formats else UNPLACED

        def seconds(kernel: Kernel) -> float:
            return KernelTimes.of(ctx).seconds(replace(kernel, format=low))

        saved = {
            rank: seconds(whole) - sum(seconds(kernel) for kernel in pair)
            for rank, pair in two.items()
        }
        return {rank: s for rank, s in saved.items() if s > _FASTER * seconds(whole)}

    def _measure(
        self, program: Program, node: fx.Node, kernels: Sequence[Kernel], ctx: PassContext
    ) -> None:
        samples = inputs_of(program, [node], ctx.calibration[:1])[node]
        generator = torch.Generator().manual_seed(ctx.seed)
        trials = []
        for kernel in kernels:
            fits = samples.shape[-1] == kernel.inputs
            given = samples if fits else torch.randn(4096, kernel.inputs, generator=generator)
            weight = torch.randn(kernel.outputs, kernel.inputs, generator=generator)
            trials.append(Trial(kernel, None, given, weight))
        KernelTimes.of(ctx).learn(trials)


@dataclass(frozen=True)
class _Rank(Option):
    """A rank at which a linear may be written as two.

    Attributes:
        rank: Units between.
        two: ``[rank, K]``, ``[N, rank]``, and ``[N]`` that the bias takes over.
    """

    rank: int
    two: tuple[Tensor, Tensor, Tensor]


def _is_alone(node: fx.Node) -> bool:
    """Whether nothing else reads the weight, so that it goes when the linear does."""
    return is_plain_linear(node) and len(node.args[1].users) == 1  # type: ignore[union-attr]


def _factors(
    program: Program, node: fx.Node, rank: int, moments: Moments
) -> tuple[Tensor, Tensor, Tensor]:
    weight = program.tensor(str(parameter_name(node.args[1]))).double()
    assert moments.covariance is not None
    values, vectors = torch.linalg.eigh(moments.covariance)
    floor = _RIDGE * float(values.mean()) + torch.finfo(torch.float64).tiny
    root = vectors * (values.clamp_min(0.0) + floor).sqrt()
    left, sizes, right = torch.linalg.svd(weight @ root, full_matrices=False)
    second = left[:, :rank] * sizes[:rank].sqrt()
    first = sizes[:rank].sqrt()[:, None] * torch.linalg.solve(root.T, right[:rank].T).T
    lost = (weight - second @ first) @ moments.mean
    return first.float(), second.float(), lost.float()


def _replaced(program: Program, factors: Mapping[str, tuple[Tensor, Tensor, Tensor]]) -> Program:
    trial = program.clone()
    rw = Rewriter(trial, "trial")
    for node in list(trial.graph.nodes):
        if node.name in factors:
            _replace(rw, node, factors[node.name])
    sweep(trial)
    return trial


def _replace(rw: Rewriter, node: fx.Node, two: tuple[Tensor, Tensor, Tensor]) -> None:
    name = str(parameter_name(node.args[1]))
    bias = parameter_name(argument(node, 2, "bias"))
    first, second, lost = two
    moved = lost if bias is None else rw.program.tensor(bias) + lost
    places = [
        rw.parameter(f"{name}_{part}", value)
        for part, value in (("in", first), ("out", second), ("bias", moved))
    ]
    with rw.before(node):
        between = rw.emit(_aten.linear.default, node.args[0], places[0], like=node)
        new = rw.emit(_aten.linear.default, between, *places[1:], like=node)
    rw.replace(node, new)


def _record(
    ctx: PassContext,
    program: Program,
    sites: Mapping[str, fx.Node],
    options: Sequence[_Rank],
    chosen: Sequence[_Rank],
) -> None:
    batch = max(ctx.batch_sizes)
    flops = {name: cost_of(node, batch).flops for name, node in sites.items()}
    taken = {option.place: option for option in chosen}
    for name, node in sites.items():
        own = [option for option in options if option.place == name]
        if not own:
            continue
        shape = tuple(program.tensor(str(parameter_name(node.args[1]))).shape)
        one = taken.get(name)
        if one is None:
            ctx.missed("no rank that is faster is within the budget", node)
        ctx.report.sites.append(
            SiteRecord(
                site_of(node),
                "rank",
                shape,
                f"rank {one.rank}" if one else "full rank",
                tuple(
                    {
                        "rank": option.rank,
                        "flops": 2.0 * batch * option.rank * sum(shape) / flops[name],
                        "seconds": option.saved,
                        "damage": dict(option.lost),
                    }
                    for option in own
                ),
                f"saves {1e6 * one.saved:.1f} µs at batch {batch}, ΔNE "
                f"{100 * max(one.lost.values()):+.4f} % alone"
                if one
                else "over budget at every rank that is faster",
            )
        )
