"""Dropping the sites that hurt from a plan that was over budget, in place of the whole plan."""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from ..analysis.sites import linear_sites, table_sites
from ..formats import UNPLACED
from ..ir.facts import facts_of, set_precision, site_of
from ..ir.program import Program
from ..report.records import SiteRecord
from ..report.report import Report

REASON = "the plan was over budget once it was realised, and this is among what hurts most"


def drop_costliest(program: Program, report: Report, kind: str) -> tuple[str, ...]:
    """Takes their format from the sites of a kind that hold half of the plan's damage.

    Args:
        program: Whose placed formats are not yet realised; is changed.
        report: Its sites say what each format costs; is told what becomes of them.
        kind: ``"linear"`` or ``"table"``.

    Returns:
        The sites that go; none where nothing would be left, or nothing is known of the damage.
    """
    nodes = _placed(program, kind)
    known = [site for site in report.sites if site.kind == kind and site.site in nodes]
    costs = {site.site: _damage(site) for site in known}
    total, gone = sum(costs.values()), list[str]()
    for name in sorted(costs, key=lambda name: -costs[name]):
        if gone and sum(costs[one] for one in gone) >= total / 2.0:
            break
        gone.append(name)
    if len(gone) == len(costs):
        return ()
    for name in gone:
        for node in nodes[name]:
            set_precision(node, None)
    report.sites[:] = [
        replace(site, chosen=UNPLACED, reason=REASON) if site.site in gone else site
        for site in report.sites
    ]
    return tuple(gone)


def _placed(program: Program, kind: str) -> dict[str, list[fx.Node]]:
    """The nodes of each site that a format is placed on."""
    found: dict[str, list[fx.Node]] = {}
    if kind == "linear":
        for node in linear_sites(program):
            found.setdefault(site_of(node), []).append(node)
    elif kind == "table":
        for name, lookups in table_sites(program).items():
            found[name.removesuffix(".weight")] = list(lookups)
    return {
        name: nodes
        for name, nodes in found.items()
        if any(facts_of(node).precision is not None for node in nodes)
    }


def _damage(site: SiteRecord) -> float:
    """What its format costs alone, of the task or cohort that it costs most."""
    for candidate in site.candidates:
        if candidate.get("format") == site.chosen:
            return max(0.0, *map(float, candidate.get("damage", {}).values()), 0.0)
    return 0.0
