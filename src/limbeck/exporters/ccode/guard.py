"""The guard of the exported C: replaces numbers that are not finite, and counts steps that see what training never saw.

A number counts as seen within the least and greatest value of the data set, with a tenth of their distance to spare on
either side. Without a recorded range only numbers that are not finite count. Observations of more than `GUARDED` numbers,
images above all, are not looked at: a second copy of them would not fit small machines.
"""

from __future__ import annotations

import numpy as np

from limbeck.contracts import Blueprint, Floats, Range
from limbeck.exporters.ccode.body import Body, Row

GUARDED = 512  # numbers of an observation up to which it is guarded
MARGIN = 0.1  # of the distance between the least and the greatest value seen, on either side
ROUNDING = 1e-6  # of the larger of the two: numbers that never changed may differ by their rounding

_FINITE = """
/* told from the bits, so that no compiler flag can optimise it away */
static int @p_finite(float v)
{
    union { float f; uint32_t u; } bits;
    bits.f = v;
    return (bits.u & 0x7f800000u) != 0x7f800000u;
}
"""

_OUTSIDE = """
uint32_t @p_outside(const float *obs)
{
    uint32_t outside = 0;
    int i;
    for (i = 0; i < @COUNT; i++)
        outside += (uint32_t)!(@p_finite(@SEEN)@INSIDE);
    return outside;
}
"""

_SEE = """
/* x = the observation with finite numbers only; how many were outside */
static uint32_t @p_see(const float *obs, float *x)
{
    uint32_t outside = 0;
    int i;
    for (i = 0; i < @COUNT; i++) {
        const float v = @SEEN;
        const int finite = @p_finite(v);
        outside += (uint32_t)!(finite@WITHIN);
        x[i] = finite ? v : @MIDDLE;
    }
    return outside;
}
"""

_NONE = """
uint32_t @p_outside(const float *obs)
{
    (void)obs;
    return 0;
}
"""

WORDS = {
    0: f"observations of more than {GUARDED} numbers are not guarded",
    1: "numbers that are not finite are read as 0 and counted",
    2: "numbers that are not finite are read as the middle of what training saw; they and numbers out of range are counted",
}


def level(blueprint: Blueprint, size: int) -> int:
    """0: not guarded; 1: numbers that are not finite; 2: numbers outside of what was seen as well."""
    return 0 if size > GUARDED else 1 if blueprint.seen is None else 2


def limits(seen: Range) -> tuple[Floats, Floats]:
    """[O] the least and the greatest number that is not strange, finite in float32.

    >>> low, high = limits(Range(np.float32([0, 5]), np.float32([10, 5])))
    >>> low.round(3).tolist(), high.round(3).tolist()
    ([-1.0, 5.0], [11.0, 5.0])
    """
    low, high = seen.low.astype(np.float64), seen.high.astype(np.float64)
    spare = MARGIN * (high - low) + ROUNDING * np.maximum(np.abs(low), np.abs(high))
    most = float(np.finfo(np.float32).max)
    return np.clip(low - spare, -most, most).astype(np.float32), np.clip(high + spare, -most, most).astype(np.float32)


def write(blueprint: Blueprint, obs: str, x: Row, body: Body) -> None:
    """Functions and statements that fill `x` from `obs`, an expression of i; nothing but the count of steps unguarded."""
    body.add("memory->steps++;")
    if not level(blueprint, x.size):
        body.functions.append(_NONE)
        return
    body.add(f"memory->strange += @p_see(obs, {x.at}) != 0;")
    inside = within = ""
    middle = "0.0f"
    if blueprint.seen is not None:
        low, high = (body.constant(name, a) for name, a in zip(("least", "most"), limits(blueprint.seen), strict=True))
        inside, within = (f" & ({v} >= {low}[i]) & ({v} <= {high}[i])" for v in (obs, "v"))
        middle = f"0.5f * {low}[i] + 0.5f * {high}[i]"
    text = _FINITE + _OUTSIDE + _SEE
    for key, word in (
        ("COUNT", str(x.size)),
        ("SEEN", obs),
        ("INSIDE", inside),
        ("WITHIN", within),
        ("MIDDLE", middle),
    ):
        text = text.replace(f"@{key}", word)
    body.functions.append(text)
