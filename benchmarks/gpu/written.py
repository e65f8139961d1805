"""What was found, as a page."""

from __future__ import annotations

from typing import Any


def markdown(data: dict[str, Any], name: str) -> str:
    """A page of tables; numbers of a dry run say that they are none."""
    facts, sections = data["facts"], data["sections"]
    lines = [f"# GPU check: {facts.get('gpu') or name}", ""]
    if name == "dry":
        lines += ["A dry run on a CPU at toy sizes: it shows that the steps run, and no speed.", ""]
    lines += [", ".join(f"{key} {value}" for key, value in facts.items() if value), ""]
    for key, why in data["skipped"].items():
        lines += [f"- {key} was not done: {why}"]
    peak = sections.get("device") or {}
    if peak:
        said = ", ".join(
            f"{k} {v:.0f}" if isinstance(v, float) else f"{k} {v}" for k, v in peak.items()
        )
        lines += ["", f"Reached at best: {said}."]
    if "tests" in sections:
        lines += ["", f"Tests marked gpu: {sections['tests']['tail'][-1:]}"]
    lines += _gemms(sections.get("gemms") or [], peak)
    lines += _sharing(sections.get("sharing"))
    lines += _models(sections.get("models") or [])
    return "\n".join(lines) + "\n"


def _gemms(rows: list[dict[str, Any]], peak: dict[str, Any]) -> list[str]:
    if not rows:
        return []
    names = sorted({name for row in rows for name in row["seconds"]})
    lines = ["", "## LoKA's GEMM shapes: microseconds a call, quantizing included", ""]
    lines += ["| M × K × N | " + " | ".join(names) + " | chosen | over BF16 | over best single |"
              " share of peak |"]  # fmt: skip
    lines += ["|---" * (len(names) + 5) + "|"]
    for row in rows:
        seconds = row["seconds"]
        mixed = seconds[row["chosen"]]
        cells = [f"{1e6 * seconds[n]:.1f}" if n in seconds else "–" for n in names]
        low = "fp8_tflops" if row["chosen"].startswith("fp8") else "bf16_tflops"
        reached = (
            row["tflops"][row["chosen"]] / peak[low] if isinstance(peak.get(low), float) else 0
        )
        lines += [
            f"| {' × '.join(map(str, row['shape']))} | {' | '.join(cells)} | {row['chosen']} | "
            f"{seconds['bf16'] / mixed:.2f}× | {row['best_low_seconds'] / mixed:.2f}× | "
            f"{reached} |"
        ]
    return lines


def _sharing(found: dict[str, Any] | None) -> list[str]:
    if not found:
        return []
    lines = ["", "## Request sharing, on the shape of IKBO's blog", ""]
    lines += ["| form | milliseconds | speedup | published | off |", "|---|---|---|---|---|"]
    for name, seconds in found["seconds"].items():
        speedup = found["speedup"].get(name, 1.0)
        published = found["published"].get(name, 1.0)
        lines += [
            f"| {name} | {1e3 * seconds:.3f} | {speedup:.2f}× | {published:.2f}× | "
            f"{found['off'][name]:.1e} |"
        ]
    return lines


def _models(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    names = sorted({name for row in rows for name in row["seconds"]})
    lines = ["", "## Models: milliseconds a batch", ""]
    lines += ["| model | batch | " + " | ".join(names) + " | mixed over BF16 | over best single |"]
    lines += ["|---" * (len(names) + 4) + "|"]
    for row in rows:
        seconds = row["seconds"]
        single = [t for n, t in seconds.items() if n not in ("bf16", "mixed")]
        best = min(single) / seconds["mixed"] if single else float("nan")
        cells = [f"{1e3 * seconds[n]:.3f}" if n in seconds else "–" for n in names]
        lines += [
            f"| {row['model']} | {row['batch']} | {' | '.join(cells)} | "
            f"{seconds['bf16'] / seconds['mixed']:.2f}× | {best:.2f}× |"
        ]
    return lines
