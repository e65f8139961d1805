"""Real ranking data that a machine with only a package index can get, and a generated stand-in.

```python
from rankc.models.data import batches, load_flights

flights = load_flights()
for inputs, labels in batches(flights.test, 512): ...
```
"""

from __future__ import annotations

from .archive import DataUnavailable
from .census import load_census
from .conversions import ConversionLog, simulated_conversions
from .flights import load_flights
from .generated import synthetic_flights
from .movielens import load_movielens
from .rows import RankingData, Rows, batches

__all__ = [
    "ConversionLog",
    "DataUnavailable",
    "RankingData",
    "Rows",
    "batches",
    "load_census",
    "load_flights",
    "load_movielens",
    "simulated_conversions",
    "synthetic_flights",
]
