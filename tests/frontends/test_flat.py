"""Hooks, decorators and signatures: the model is called as its example was given."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from rankc.frontends.export import capture
from torch import Tensor, nn

IDS = torch.tensor([3, 0, 7, 7, 1])
DENSE = torch.rand(5, 4, generator=torch.Generator().manual_seed(0))


class Ranker(nn.Module):
    """A table beside dense features."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.items = nn.Embedding(20, 8)
        self.score = nn.Linear(12, 1)

    def rank(self, ids: Tensor, dense: Tensor) -> Tensor:
        return self.score(torch.cat([self.items(ids), dense], 1)).squeeze(1)  # type: ignore[no-any-return]


class Plain(Ranker):
    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        return self.rank(ids, dense)


def by_place(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that knows its arguments by place alone."""

    @functools.wraps(forward)
    def called(*args: Any) -> Any:
        model, ids, dense = args
        return forward(model, ids, dense * 2)

    return called


def unnamed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that hides the arguments' names."""

    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs)

    return called


class ByPlace(Plain):
    forward = by_place(Plain.forward)


class Unnamed(Plain):
    forward = unnamed(Plain.forward)


class NoGrad(Plain):
    forward = torch.no_grad()(Plain.forward)


class Inference(Plain):
    forward = torch.inference_mode()(Plain.forward)


class Undisturbed(Plain):
    forward = torch.compiler.disable(Plain.forward)


class Varargs(Ranker):
    def forward(self, *features: Tensor) -> Tensor:
        return self.rank(*features)


class PositionOnly(Ranker):
    def forward(self, ids: Tensor, dense: Tensor, /) -> Tensor:
        return self.rank(ids, dense)


class Defaults(Ranker):
    def forward(
        self, ids: Tensor, dense: Tensor, mask: Tensor | None = None, *, scale: float = 1.5
    ) -> Tensor:
        return self.rank(ids, dense * scale if mask is None else dense * mask)


class Nested(Ranker):
    def forward(self, rows: tuple[dict[str, Tensor], list[Tensor]]) -> Tensor:
        named, listed = rows
        return self.rank(named["ids"], listed[0] * listed[1])


class NameOnly(Ranker):
    def forward(self, ids: Tensor, *, dense: Tensor) -> Tensor:
        return self.rank(ids, dense)


def pre_hook(model: nn.Module) -> None:
    model.register_forward_pre_hook(lambda module, args: (args[0], args[1] * 2))


def hook(model: nn.Module) -> None:
    model.register_forward_hook(lambda module, args, score: score + args[1].sum(1))


def hook_by_name(model: nn.Module) -> None:
    def doubled(module: nn.Module, args: Any, kwargs: Any) -> Any:
        return args, {**kwargs, "dense": kwargs["dense"] * 2}

    model.register_forward_pre_hook(doubled, with_kwargs=True)


def partial(model: nn.Module) -> None:
    model.forward = functools.partial(model.forward)  # type: ignore[method-assign]


def none(model: nn.Module) -> None:
    pass


PAIR = (IDS, DENSE)
NAMED = {"ids": IDS, "dense": DENSE}
CALLS: list[tuple[type[Ranker], Callable[[nn.Module], None], Any]] = [
    (Plain, pre_hook, PAIR),
    (Plain, pre_hook, NAMED),
    (Plain, hook, PAIR),
    (Plain, hook_by_name, NAMED),
    (Plain, partial, PAIR),
    (ByPlace, none, PAIR),
    (ByPlace, none, NAMED),
    (Unnamed, pre_hook, PAIR),
    (Unnamed, none, NAMED),
    (NoGrad, none, PAIR),
    (Inference, none, PAIR),
    (Undisturbed, none, PAIR),
    (Varargs, pre_hook, PAIR),
    (PositionOnly, none, PAIR),
    (Defaults, pre_hook, PAIR),
    (Defaults, none, NAMED),
    (Nested, none, (({"ids": IDS}, [DENSE, DENSE]),)),
    (NameOnly, none, NAMED),
]


@pytest.mark.parametrize(("kind", "prepare", "example"), CALLS)
def test_is_called_as_its_example_is_given(
    kind: type[Ranker], prepare: Callable[[nn.Module], None], example: Any
) -> None:
    model = kind().eval()
    prepare(model)
    program = capture(model, example)
    with torch.no_grad():
        try:
            expected = model(**example) if isinstance(example, dict) else model(*example)
        except (IndexError, TypeError, ValueError):  # a hook that takes arguments by place alone
            expected = model(*example.values())
    got = program(**example) if isinstance(example, dict) else program(*example)
    assert torch.equal(got, expected)
