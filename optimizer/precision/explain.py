"""Why a site has the format it has, in words."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ArtifactError
from ..report.records import SiteRecord
from ..report.report import readable_bytes


def explain(sites: Sequence[SiteRecord], name: str | None = None) -> str:
    """What was tried at a site and why it has its format; of all sites, a line each.

    Args:
        sites: The report's.
        name: Which; the user's name of the module. None for all.

    Raises:
        ArtifactError: No decision was made at a site of that name; the nearest names are given.
    """
    if name is None:
        return "\n".join(f"{site.site}: {site.chosen}: {site.reason}" for site in sites)
    found = [site for site in sites if site.site == name]
    if not found:
        names = sorted({site.site for site in sites})
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.3) or names[:8]
        raise ArtifactError(f"no format was decided at {name!r}; did you mean {', '.join(near)}?")
    return "\n\n".join(_site(site) for site in found)


def _site(site: SiteRecord) -> str:
    shape = "×".join(map(str, site.shape))
    what = "rows×width" if site.kind == "table" else "outputs×inputs"
    lines = [f"{site.site}: a {site.kind} of {shape} ({what}) in {site.chosen}.", site.reason + "."]
    chosen = next((c for c in site.candidates if c["format"] == site.chosen), None)
    lines += [_candidate(candidate, candidate is chosen) for candidate in site.candidates]
    lines += [_why_not(c, chosen) for c in site.candidates if chosen and _is_faster(c, chosen)]
    return "\n".join(lines)


def _candidate(candidate: Mapping[str, Any], chosen: bool) -> str:
    times = ", ".join(
        f"{1e6 * s:.0f} us at batch {batch}" for batch, s in candidate["seconds"].items()
    )
    parts = [times, readable_bytes(candidate["bytes"])]
    if "relative" in candidate["errors"]:
        errors = candidate["errors"]
        parts.append(f"its output off by {errors['relative']:.2%} ({errors['sqnr']:.0f} dB)")
    if candidate["damage"]:
        task, worst = max(candidate["damage"].items(), key=lambda item: item[1])
        parts.append(f"ΔNE {100 * worst:+.5f} % alone ({task})")
    return f"{'*' if chosen else '-'} {candidate['format']}: {'; '.join(p for p in parts if p)}"


def _is_faster(candidate: Mapping[str, Any], chosen: Mapping[str, Any]) -> bool:
    return _seconds(candidate) < _seconds(chosen)


def _seconds(candidate: Mapping[str, Any]) -> float:
    return float(sum(candidate["seconds"].values()))


def _why_not(candidate: Mapping[str, Any], chosen: Mapping[str, Any]) -> str:
    if candidate["refused"]:
        return f"Not {candidate['format']}, though faster: {candidate['refused']}."
    if candidate["bytes"] > chosen["bytes"]:
        return f"Not {candidate['format']}, though faster: it takes more bytes."
    return (
        f"Not {candidate['format']}, though faster: with it the sites together would damage more "
        "than the budget allows."
    )
