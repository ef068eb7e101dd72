"""Run-time dispatch: the step once more for each kind of wider vectors, chosen by what the processor supports.

A plain x86-64 build has SSE2 alone, 4 floats a vector; nearly every processor that runs it has 8 or 16. Requirements that
shaped it: the same bits in every copy, so products and sums are never fused here; nothing is stored, so threads share
nothing; compilers that cannot do it, builds for size, freestanding ones and those for a processor with AVX see none of it.
"""

from __future__ import annotations

import re

from limbeck.exporters.ccode import kernels as ckernels

TARGETS = {"avx512vl": 16, "avx2": 8}  # as compilers call them, best first: floats of a vector
WORTH = frozenset({"wide", "narrow", "conv"})  # routines that more lanes make faster
FEW = 2048  # multiply-adds of a step below which it takes 0.1 us at most, and the text would be longer than the weights

# Windows: GCC does not align wide vectors on its stack. AVX: the build was told of a processor. AVX-512 includes fused
# multiply-adds, which a GNU dialect would contract to: GCC is told not to by function, whatever is inlined there; clang by
# a pragma, which must stand before all that may be, and is taken back at the end.
BEGIN = """\
/* On x86-64 the step is compiled once more for each kind of wider vectors, with the same bits, and asks the processor which
   it has. Define @P_NO_DISPATCH to leave that out, as -mno-avx and -nostdlib need: no macro tells of them. */
#if defined(__GNUC__) && (__GNUC__ >= 8 || __clang_major__ >= 11) && defined(__x86_64__) && !defined(_WIN32) && \\
    defined(__SSE__) && !defined(__AVX__) && __STDC_HOSTED__ && defined(__OPTIMIZE__) && \\
    !defined(__OPTIMIZE_SIZE__) && !defined(@P_NO_DISPATCH)
#define @P_DISPATCH
#ifdef __clang__
#pragma float_control(push)
#pragma STDC FP_CONTRACT OFF
#define @P_FOR(kind) __attribute__((target(kind)))
#else
#define @P_FOR(kind) __attribute__((target(kind), optimize("fp-contract=off")))
#endif
#endif
"""
END = """\
#if defined(@P_DISPATCH) && defined(__clang__)
#pragma float_control(pop)
#endif
"""
_ASK = """\
    if (__builtin_cpu_supports("@TARGET")) {
        @p_step@LANES(memory, obs, params, action);
        return;
    }
"""
_DEFINED = re.compile(r"^(?:#define |typedef \w+ |(?:static|@P_INLINE) (?:inline )?[\w@]+ )@[pP]_(\w+)", re.MULTILINE)
_COMMENT = re.compile(r"^/\*.*?\*/\n", re.MULTILINE | re.DOTALL)


def worth(used: set[str], multiply_adds: int) -> bool:
    """Whether a policy gains from wider vectors.

    >>> worth({"wide", "tanh"}, 4864), worth({"wide"}, 450), worth({"argmax"}, 100_000)
    (True, False, False)
    """
    return bool(used & WORTH) and multiply_adds >= FEW


def step(text: str, used: set[str]) -> str:
    """The function @p_step whose text is given, after its copies, one of which it calls where the processor can."""
    head, body = text.split("{\n", 1)
    copies = "".join(_copy(name, lanes, text, used) for name, lanes in TARGETS.items())
    asked = "".join(_ASK.replace("@TARGET", name).replace("@LANES", str(lanes)) for name, lanes in TARGETS.items())
    return f"\n#ifdef @P_DISPATCH{copies}#endif\n{head}{{\n#ifdef @P_DISPATCH\n{asked}#endif\n{body}"


def _copy(name: str, lanes: int, text: str, used: set[str]) -> str:
    """The routines over vectors and the step, their names ending in the lanes; what is not of vectors is shared."""
    routines = _COMMENT.sub("", ckernels.over_vectors(used))
    copy = ckernels.simd(lanes) + routines + text.replace("\nvoid ", "\nstatic void ")
    own = {*_DEFINED.findall(copy), "step"} - {"LANES"}

    def renamed(found: re.Match[str]) -> str:
        return found.group() + str(lanes) * (found.group(1) in own)

    copy = re.sub(r"@[pP]_(\w+)", renamed, copy)
    return "\n" + re.sub(r"^(static |@P_INLINE )", rf'@P_FOR("{name}") \1', copy, flags=re.MULTILINE)
