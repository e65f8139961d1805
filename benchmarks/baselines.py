"""The zoo trained on real data, beside a one-hot logistic regression: are the baselines sound?

``make bench-baselines`` writes ``benchmarks/results/baselines.md``. Models are trained by
`rankc.models.train`, with the settings of `DATA`: where a data set has several, each model takes
those that do best on the last tenth of the training rows, and is then trained on all of them. A
model is sound if its log loss on the test rows is below the logistic regression's, which gets every
id as a column of its own and the dense features as they are.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from rankc import models
from rankc.models.data import RankingData, batches, load_census, load_flights, load_movielens
from rankc.models.rows import Rows
from rankc.models.sides import Sides, two_sides
from rankc.models.train import train
from rankc.optimizer.quality.metrics import auc
from torch import Tensor, nn


@dataclass(frozen=True)
class Settings:
    """How a model is trained.

    Attributes:
        epochs: Passes over the training rows.
        lr: Adam's learning rate.
        tables: What the initial rows of tables are multiplied by. Interactions of dozens of fields
            start far off otherwise.
        weight_decay: Adam's.
        id_mask_rate: Share of ids that are replaced by the unknown one. Most test rows of
            MovieLens come from users that no training row has.
    """

    epochs: int
    lr: float
    tables: float = 1.0
    weight_decay: float = 1e-4
    id_mask_rate: float = 0.01


BATCH = 512
#: Loader, task, settings.
DATA: Mapping[str, tuple[Callable[[], RankingData], str, tuple[Settings, ...]]] = {
    "census": (partial(load_census, ("income",)), "income", (Settings(4, 3e-3, 0.1, 3e-5),)),
    "flights": (load_flights, "late_arr", (Settings(1, 1e-3, 0.1),)),
    "movielens": (
        load_movielens,
        "liked",
        (
            Settings(2, 1e-3, 0.1, id_mask_rate=0.3),
            Settings(2, 3e-3, id_mask_rate=0.3),
        ),
    ),
}
#: On every data set: the logistic regression's, and AFM's, whose attention averages over all pairs
#: of fields and learns slowly.
OWN: Mapping[str, tuple[Settings, ...]] = {
    "logistic": (
        Settings(2, 2e-2, weight_decay=0.0),
        Settings(8, 1e-2, weight_decay=0.0),
        Settings(8, 1e-2, weight_decay=1e-5),
    ),
    "AFM": (Settings(4, 1e-2, 0.1, 1e-6), Settings(4, 3e-2, 0.1, id_mask_rate=0.3)),
}
Arrange = Callable[[Tensor, Tensor], tuple]
ITEM, OF_ITEM, HISTORY = "item_id", ("release_year", "genres"), 20
#: Of models over flat rows; two-sided ones need a history, which MovieLens alone has.
FLAT: Mapping[str, Callable[[tuple[int, ...], int], nn.Module]] = {
    "DLRM": lambda t, d: models.DLRM(models.DLRMConfig(t, d, 16, (128, 64), (256, 128))),
    "DCN": lambda t, d: models.DCN(models.DCNConfig(t, d, (16,) * len(t))),
    "DCNv2": lambda t, d: models.DCNv2(models.DCNv2Config(t, d, 16, deep=(256, 128))),
    "DeepFM": lambda t, d: models.DeepFM(models.DeepFMConfig(t, d, 16, (256, 128))),
    "xDeepFM": lambda t, d: models.XDeepFM(models.XDeepFMConfig(t, d, 10)),
    "AutoInt": lambda t, d: models.AutoInt(models.AutoIntConfig(t, d)),
    "MaskNet": lambda t, d: models.MaskNet(models.MaskNetConfig(t, d)),
    "FiBiNET": lambda t, d: models.FiBiNET(models.FiBiNETConfig(t, d)),
    "AFM": lambda t, d: models.AFM(models.AFMConfig(t, d)),
    "PNN": lambda t, d: models.PNN(models.PNNConfig(t, d)),
    "DHEN": lambda t, d: models.DHEN(models.DHENConfig(t, d, embedding_dim=16, layers=2)),
    "Wukong": lambda t, d: models.Wukong(models.WukongConfig(t, d, embedding_dim=16, layers=2)),
}


def main() -> None:
    """Trains and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=",".join(DATA))
    parser.add_argument("--models", default=",".join(("logistic", *FLAT, "TwoSided")))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/baselines.md"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    chosen = arguments.data.split(",")
    lines = [
        "# Baselines",
        "",
        "Log loss and AUC on the test rows. Later rows are tested on in flights and MovieLens. "
        "In bold: no better than the logistic regression.",
        "",
        "| model | " + " | ".join(f"{name}, {DATA[name][1]}" for name in chosen) + " |",
        "|---|" + "---|" * len(chosen),
    ]
    floors: dict[str, float] = {}
    for kind in arguments.models.split(","):
        cells = []
        for name in chosen:
            if kind == "TwoSided" and name != "movielens":
                cells.append("")
                continue
            started = time.process_time()
            loss, area = judged(kind, name)
            floors.setdefault(name, loss)
            text = f"{loss:.4f}, {area:.4f}"
            cells.append(f"**{text}**" if loss >= floors[name] and kind != "logistic" else text)
            print(kind, name, text, f"{time.process_time() - started:.0f} s", flush=True)
        lines.append(f"| {kind} | {' | '.join(cells)} |")
        arguments.out.write_text("\n".join(lines) + "\n")


@cache
def loaded(name: str) -> RankingData:
    """A data set."""
    return DATA[name][0]()


def judged(kind: str, name: str) -> tuple[float, float]:
    """Log loss and AUC of a model on a data set's test rows."""
    data, (_, task, settings) = loaded(name), DATA[name]
    settings = OWN.get(kind, settings)
    arrange: Arrange | None = None
    if kind == "TwoSided":
        data, arrange = two_sides(data, ITEM, OF_ITEM, HISTORY)
    fit = partial(trained, kind, data, arrange, task)
    best = settings[0]
    if len(settings) > 1:
        end = int(0.9 * len(data.train))
        learnt, rest = data.train.take(slice(end)), data.train.take(slice(end, None))
        losses = [scored(fit(learnt, each), rest, arrange, task)[0] for each in settings]
        best = settings[int(np.argmin(losses))]
    return scored(fit(data.train, best), data.test, arrange, task)


def trained(
    kind: str,
    data: RankingData,
    arrange: Arrange | None,
    task: str,
    rows: Rows,
    settings: Settings,
) -> nn.Module:
    """A model of the data set, trained on some of its rows."""
    torch.manual_seed(0)
    dense = data.train.dense.shape[1]
    if kind == "logistic":
        model: nn.Module = Logistic(data.cardinalities, dense)
    elif isinstance(arrange, Sides):
        model = two_sided(arrange)
    else:
        model = FLAT[kind](data.cardinalities, dense)
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.weight.data.mul_(settings.tables)
    train(
        model,
        rows,
        task=task,
        epochs=settings.epochs,
        batch_size=BATCH,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        id_mask_rate=settings.id_mask_rate,
        arrange=arrange,
    )
    return model


def scored(model: nn.Module, rows: Rows, arrange: Arrange | None, task: str) -> tuple[float, float]:
    """Log loss and AUC of a model on rows."""
    logits = []
    with torch.no_grad():
        for inputs, _ in batches(rows, 4096):
            logits.append(model(*(inputs if arrange is None else arrange(*inputs))))
    scores = torch.cat(logits).double().numpy()
    labels = rows.labels[task].astype(np.float64)
    loss = float(np.mean(np.logaddexp(0.0, scores) - labels * scores))
    return loss, float(auc(scores, labels))


def two_sided(sides: Sides) -> nn.Module:
    """A two-sided model for the sides."""
    widths = len(sides.user_dense), len(sides.item_dense)
    users, items = sides.user_cardinalities, sides.item_cardinalities
    config = models.TwoSidedConfig(
        users, widths[0], items, widths[1], HISTORY, 16, 2, (64,), (64,), (128, 64)
    )
    return models.TwoSided(config)


class Logistic(nn.Module):
    """A weight for every id and every dense feature."""

    def __init__(self, cardinalities: tuple[int, ...], dense: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(rows, 1) for rows in cardinalities)
        for table in self.tables:
            nn.init.zeros_(table.weight)
        self.dense = nn.Linear(dense, 1)

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """Logits ``[B]`` of ``[B, n_dense]`` and ``[B, n_ids]``."""
        terms = [table(ids[:, i]) for i, table in enumerate(self.tables)]
        return torch.cat([self.dense(dense), *terms], 1).sum(1)


if __name__ == "__main__":
    main()
