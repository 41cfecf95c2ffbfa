"""Experiment 3: which component gives birth to the value at the place, and which take it away."""

from typing import Any

from lib.core.definitions import PLATEAU, WRITES
from lib.core.evidence import CANNOT_TELL, NONE_FOUND, Test, conclusion

RULE = (
    "size = mean |block output| at the place over the windows that have the spike, peak = its largest, s its sign; "
    "share of a write = sum of s x write over sum of |block output| at the peak, over these windows. generators: "
    f"components whose share lies above {WRITES:.0%}, in layers up to the peak's; birth: the largest of them, if its "
    f"interval lies above that of the next; plateau: from the first to the last layer with at least {PLATEAU:.0%} of "
    f"the peak; erasers: components whose share lies below -{WRITES:.0%}, in layers after the birth's (without one, "
    "after the peak's). Intervals are simultaneous over all components; cannot tell: one holds the threshold. verdict: "
    "the birth, no single component where nothing reaches a generator's size, none found where no window is massive"
)


def judge(results: dict[str, Any]) -> dict[str, Any]:
    profile, writes = results["profile"], results["writes"]
    size = profile["size"]
    peak = max(range(len(size)), key=size.__getitem__)
    values: dict[str, Any] = {
        "birth": None,
        "generators": [],
        "plateau": None,
        "erasers": [],
        "cannot_tell": [],
        "peak": {"layer": peak, "value": profile["sign"] * size[peak]},
    }
    if not profile["spiking"]["mean"]:
        return conclusion(NONE_FOUND, RULE, values)
    kept = [layer for layer, of in enumerate(size) if of >= PLATEAU * size[peak]]
    values["plateau"] = [kept[0], kept[-1]]
    tests = [_test(write, "above", WRITES) for write in writes if _order(write) <= peak]
    able = [write for write in writes if _order(write) <= peak]
    generators = [w for w, test in zip(able, tests, strict=True) if test.answer]
    generators.sort(key=lambda write: -write["share"]["mean"])
    birth, verdict = _birth(generators)
    after = _order(birth) if birth else peak
    later = [write for write in writes if _order(write) > after]
    erasing = [_test(write, "below", -WRITES) for write in later]
    erasers = [w for w, test in zip(later, erasing, strict=True) if test.answer]
    unclear = [w for w, test in zip(able + later, tests + erasing, strict=True) if test.answer is None]
    values |= {
        "birth": birth and _listed(birth),
        "generators": [_listed(write) for write in generators],
        "erasers": [_listed(write) for write in sorted(erasers, key=lambda write: write["share"]["mean"])],
        "cannot_tell": [_listed(write) for write in unclear],
    }
    if verdict is None:
        verdict = CANNOT_TELL if any(write in unclear for write in able) else "no single component"
    decisive = [t for t in tests + erasing if t.answer is not False]
    return conclusion(verdict, RULE, values, decisive + _nearest(tests + erasing, decisive))


def _birth(generators: list[dict[str, Any]]) -> tuple[dict[str, Any] | None, str | None]:
    """(the write, or None; the verdict, or None where there are no generators) of the largest first."""
    if not generators:
        return None, None
    first, *others = generators
    if others and first["share"]["family95"][0] <= others[0]["share"]["family95"][1]:
        return None, f"{CANNOT_TELL}: {first['name']} or {others[0]['name']}"
    return first, first["name"]


def _test(write: dict[str, Any], wanted: str, threshold: float) -> Test:
    return Test(f"share of {write['name']}", write["share"], wanted, threshold, "family95")


def _nearest(tests: list[Test], decisive: list[Test]) -> list[Test]:
    """The one of the others whose threshold is nearest."""
    others = [test for test in tests if test not in decisive]
    return sorted(others, key=lambda test: abs(test.distance or 0))[:1]


def _order(write: dict[str, Any]) -> int:
    return -1 if write["layer"] is None else write["layer"]


def _listed(write: dict[str, Any]) -> dict[str, Any]:
    return {key: write[key] for key in ("layer", "component", "name", "value")}
