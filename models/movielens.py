"""MovieLens-100K: small, with users. Read at run time and never redistributed."""

from __future__ import annotations

import io

import numpy as np

from .archive import Carrier, fetch, read_member
from .encoding import encode_ids, first_rows, import_pandas, standardise
from .rows import RankingData, Rows

CARRIER = Carrier(
    package="recbole",
    version="1.2.1",
    filename="recbole-1.2.1-py3-none-any.whl",
    sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
)
LICENCE = "GroupLens research licence: research use, no redistribution (MovieLens-100K)"
LIKED_RATING = 4
TRAIN_SHARE = 0.8

ID_NAMES = (
    "user_id",
    "item_id",
    "age",
    "gender",
    "occupation",
    "zip_code",
    "release_year",
    "genres",
)
DENSE_NAMES = ("age", "release_year", "hour")


def load_movielens() -> RankingData:
    """Loads MovieLens-100K: 100,000 ratings, split 80/20 by time.

    The task `liked` is a rating of 4 or more. The group of a row is its user; cohorts are gender
    and occupation. Most test rows come from users that training never saw: a hard split, and the
    one that serving has.

    Raises:
        DataUnavailable: the package index can't be reached, or pandas is missing.
    """
    pandas = import_pandas()
    archive = fetch(CARRIER)
    ratings, items, users = (
        pandas.read_csv(io.BytesIO(read_member(archive, f"/ml-100k.{kind}")), sep="\t", dtype=str)
        for kind in ("inter", "item", "user")
    )
    for table in (ratings, items, users):
        # RecBole's headers are `name:type`.
        table.columns = [column.split(":")[0] for column in table.columns]
    items = items.rename(columns={"class": "genres"})
    frame = ratings.merge(items, on="item_id", how="left", validate="many_to_one")
    frame = frame.merge(users, on="user_id", how="left", validate="many_to_one")
    for name in ("timestamp", "rating", "age", "release_year"):
        frame[name] = pandas.to_numeric(frame[name], errors="coerce")
    frame["hour"] = frame["timestamp"] // 3600 % 24
    order = ["timestamp", "user_id", "item_id"]
    frame = frame.sort_values(order, kind="stable").reset_index(drop=True)
    train_rows = first_rows(len(frame), TRAIN_SHARE)
    ids, cardinalities = encode_ids(frame, ID_NAMES, train_rows)
    rows = Rows(
        dense=standardise(frame, DENSE_NAMES, train_rows),
        ids=ids,
        labels={"liked": (frame["rating"] >= LIKED_RATING).to_numpy(dtype=np.float32)},
        group=frame["user_id"].to_numpy(dtype=np.int64),
        cohorts={name: frame[name].to_numpy(dtype=np.str_) for name in ("gender", "occupation")},
        timestamp=frame["timestamp"].to_numpy(dtype=np.int64),
    )
    return RankingData(
        name="MovieLens-100K",
        licence=LICENCE,
        train=rows.take(train_rows),
        test=rows.take(~train_rows),
        dense_names=DENSE_NAMES,
        id_names=ID_NAMES,
        cardinalities=cardinalities,
    )
