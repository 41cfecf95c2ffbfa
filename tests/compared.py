"""Results that two machines, devices or kernels measured: where they differ by more than rounding."""

import math

STEP = 0.05  # of an interval: its end is one of many drawn means, and rounding may make it the next one


def differences(ours, theirs, same, at=""):
    """Where two JSON values differ, one line each."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted(ours.keys() | theirs.keys()):
            yield from differences(ours.get(key), theirs.get(key), same, f"{at}.{key}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for i, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from differences(mine, other, same, f"{at}[{i}]")
    elif not same(ours, theirs) and ours != theirs:
        yield f"{at}: {ours} instead of {theirs}"


def with_intervals(results):
    """JSON values, whose intervals become tuples: `differences` compares these as a whole.

    Without what follows from them, and without the index of a largest value: others may be as large but for rounding.
    """
    if isinstance(results, dict):
        return {
            key: tuple(value) if key in ("ci95", "family95", "interval") and value else with_intervals(value)
            for key, value in results.items()
            if key not in ("distance", "index")
        }
    return [with_intervals(value) for value in results] if isinstance(results, list) else results


def near(there, here, relative=1e-5, absolute=1e-5, step=STEP):
    """Means over float32 are in float64 only where there is one. Where losses of about 5 cancel, what is left is as
    inexact as they are.
    """
    if isinstance(there, tuple) and isinstance(here, tuple):
        room = max(absolute, step * (here[1] - here[0]))
        return all(math.isclose(*ends, rel_tol=relative, abs_tol=room) for ends in zip(there, here, strict=True))
    floats = isinstance(there, float) and isinstance(here, float)
    return floats and math.isclose(there, here, rel_tol=relative, abs_tol=absolute)
