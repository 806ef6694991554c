"""The results as Markdown, from the plain values that the JSON file holds too."""

from collections.abc import Iterable
from typing import Any

from .measure import GIB

Results = dict[str, Any]
_FLOORS = ("flops", "products")


def markdown(results: Results) -> str:
    lines = [f"## {results['machine']}", "", f"`{results['command']}`", "", *_ceilings(results["ceilings"])]
    for cell in results["cells"]:
        lines += ["", f"### {cell['title']}", "", *_steps(cell, results["ceilings"])]
        lines += ["", *_floors(cell, results["ceilings"])]
    if results["calls"]:
        lines += ["", "### Around sampling", "", *_calls(results["calls"], results["ceilings"])]
    for each in results["profiles"]:
        lines += ["", f"### Where a step's time goes: {each['title']}", "", *_profile(each, results["ceilings"])]
    return "\n".join(lines) + "\n"


def _ceilings(found: Results) -> list[str]:
    return [
        f"Measured here: a matrix product of side {found['matrix']} {found['flops'] / 1e12:.4g} TFLOP/s, "
        f"a copy {found['bytes'] / 1e12:.3g} TB/s (read and written)."
    ]


def _steps(cell: Results, ceilings: Results) -> list[str]:
    plain = cell["variants"].get("plain", {})
    rows = []
    for name, found in cell["variants"].items():
        if found["error"]:
            rows.append([name, found["error"], *[""] * 7])
            continue
        flops, median = _flops(found), found["median"]
        rows.append(
            [
                name,
                f"{1000 * median:.4g}",
                _ratio(median, plain.get("median")),
                f"{1000 * found['fastest']:.4g} ({_ratio(found['fastest'], plain.get('fastest'))})",
                _gib(found["peak"]),
                _tera(found.get("counted")) + ("*" if found.get("unknown") else ""),
                _tera(found.get("analytic")),
                "" if flops is None else f"{flops / median / 1e12:.4g}",
                "" if flops is None else f"{100 * flops / median / ceilings['flops']:.1f} %",
            ]
        )
    head = "variant|step, ms|× plain|fastest (× plain)|peak, GiB|TFLOP counted|by hand|TFLOP/s|of the ceiling"
    unknown = sorted({each for found in cell["variants"].values() for each in found.get("unknown") or ()})
    note = ["", f"\\* without {', '.join(unknown)}, so the share is of the count by hand."] if unknown else []
    rounds = max((len(found["seconds"]) for found in cell["variants"].values()), default=0)
    return [*_table(head, rows), *note, "", f"Up to {rounds} steps each, in turns."]


def _floors(cell: Results, ceilings: Results) -> list[str]:
    rows = []
    for name, work in cell["floors"].items():
        at_least = [
            1000 * work["flops"] / ceilings["flops"],
            *(1000 * work[key] / ceilings["bytes"] for key in ("products", "modules")),
        ]
        rows.append([name, f"{work['flops'] / 1e12:.4g}", *(f"{each:.3g}" for each in at_least)])
    head = "floors of a step by stage|TFLOP|arithmetic, ms|bytes of all products, ms|bytes of whole modules, ms"
    return _table(head, rows)


def _calls(found: Results, ceilings: Results) -> list[str]:
    rows = []
    for name, each in found.items():
        if each["error"]:
            rows.append([name, each["error"], *[""] * 6])
            continue
        flops = each.get("counted")
        rows.append(
            [
                name,
                f"{1000 * each['median']:.4g}",
                f"{1000 * each['fastest']:.4g}",
                _gib(each["peak"]),
                _tera(flops),
                "" if not flops else f"{100 * flops / each['median'] / ceilings['flops']:.1f} %",
                "" if not flops else f"{1000 * flops / ceilings['flops']:.3g}",
                "" if not each.get("bytes") else f"{1000 * each['bytes'] / ceilings['bytes']:.3g}",
            ]
        )
    head = "call|ms|fastest|more memory, GiB|TFLOP counted|of the ceiling|arithmetic floor, ms|bytes floor, ms"
    return _table(head, rows)


def _profile(found: Results, ceilings: Results) -> list[str]:
    """Stages and parts against variants, then the kernels that take most."""
    names = list(found["variants"])
    places = dict.fromkeys((row["stage"], row["part"]) for rows in found["variants"].values() for row in rows)
    times = {
        name: {(row["stage"], row["part"]): row["seconds"] for row in rows} for name, rows in found["variants"].items()
    }
    stages = {
        stage: max(sum(t.get(p, 0) for p in places if p[0] == stage) for t in times.values()) for stage, _ in places
    }
    order = sorted(places, key=lambda p: (-stages[p[0]], -max(t.get(p, 0) for t in times.values())))
    rows, floors = [], found["floors"]
    for stage in dict.fromkeys(stage for stage, _ in order):
        inside = [place for place in order if place[0] == stage]
        sums = [sum(times[name].get(place, 0) for place in inside) for name in names]
        floor = [
            sum(floors[key][part] for key in floors if key.split("|")[0] == stage) for part in ("flops", "products")
        ]
        rows.append([f"**{stage}**", *(f"**{1000 * each:.3g}**" for each in sums), *_both(floor, ceilings)])
        for place in inside:
            floor = [floors.get("|".join(place), {}).get(key, 0) for key in _FLOORS]
            if max(times[name].get(place, 0) for name in names) >= 0.002 * sum(stages.values()) or any(floor):
                rows.append([place[1], *(_ms(times[name].get(place)) for name in names), *_both(floor, ceilings)])
    whole = [_ms(found["steps"].get(name)) for name in names]
    rows.append(["**a step, not profiled**", *whole, "", ""])
    rows.append(["**all kernels**", *(f"**{1000 * sum(times[name].values()):.4g}**" for name in names), "", ""])
    head = f"ms of kernels|{'|'.join(names)}|arithmetic floor ({found['kind']})|bytes of products"
    lines = _table(head, rows)
    for name, groups in found["variants"].items():
        lines += ["", f"{name}, kernels of the largest parts:", ""]
        for group in sorted(groups, key=lambda row: -row["seconds"])[:10]:
            tops = "; ".join(f"{1000 * seconds:.3g} ms `{kernel[:70]}`" for kernel, seconds in group["kernels"][:3])
            lines.append(f"- {group['stage']}, {group['part']} ({group['calls']} kernels): {tops}")
    return lines


def _both(floor: list[float], ceilings: Results) -> list[str]:
    flops, moved = floor
    return [
        "" if not flops else f"{1000 * flops / ceilings['flops']:.3g}",
        "" if not moved else f"{1000 * moved / ceilings['bytes']:.3g}",
    ]


def _flops(found: Results) -> float | None:
    """What was counted; where operators are unknown to the counter, or it could not count, the count by hand."""
    counted = found.get("counted")
    return found.get("analytic") if found.get("unknown") or not counted else counted


def _table(head: str, rows: Iterable[list[str]]) -> list[str]:
    names = head.split("|")
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def _ratio(value: float, base: float | None) -> str:
    return "" if not base else f"{value / base:.3f}"


def _gib(value: int | None) -> str:
    return "" if value is None else f"{value / GIB:.2f}"


def _tera(value: float | None) -> str:
    return "" if value is None else f"{value / 1e12:.4g}"


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1000 * seconds:.3g}"
