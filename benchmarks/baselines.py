"""The zoo trained on real data, beside a one-hot logistic regression: are the baselines sound?

``make bench-baselines`` writes ``benchmarks/results/baselines.md``. Models are trained for one
epoch (Census-Income two), with Adam and the settings of `rankc.models.train`; nothing is tuned. A
model is sound if its log loss on the test rows is below the logistic regression's, which gets every
id as a column of its own and the dense features as they are.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch
from rankc import models
from rankc.models.data import RankingData, batches, load_census, load_flights, load_movielens
from rankc.models.sides import Sides, two_sides
from rankc.models.train import train
from rankc.optimizer.quality import auc
from torch import Tensor, nn

#: Loader, task, epochs, learning rate.
DATA: Mapping[str, tuple[Callable[[], RankingData], str, int, float]] = {
    "census": (load_census, "income", 2, 1e-3),
    "flights": (load_flights, "late_arr", 1, 5e-4),
    "movielens": (load_movielens, "liked", 1, 1e-3),
}
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
    data, (_, task, epochs, lr) = loaded(name), DATA[name]
    arrange: Callable[[Tensor, Tensor], tuple] | None = None
    torch.manual_seed(0)
    if kind == "logistic":
        model: nn.Module = Logistic(data.cardinalities, data.train.dense.shape[1])
        epochs, lr = 6 * epochs, 2e-2
    elif kind == "TwoSided":
        data, sides = two_sides(data, ITEM, OF_ITEM, HISTORY)
        model, arrange = two_sided(sides), sides
    else:
        model = FLAT[kind](data.cardinalities, data.train.dense.shape[1])
    train(model, data.train, task=task, epochs=epochs, lr=lr, arrange=arrange)
    logits = []
    with torch.no_grad():
        for inputs, _ in batches(data.test, 4096):
            logits.append(model(*(inputs if arrange is None else arrange(*inputs))))
    scores = torch.cat(logits).double().numpy()
    labels = data.test.labels[task].astype(np.float64)
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
