"""The C driver around a generated policy: whole batches for ctypes, and one step as a Python function.

The Python function needs no Python headers: it uses six names and two layouts of the stable ABI (PEP 384, buffers
since 3.11), handed over as addresses. A call costs about 0.1 us, a ctypes call several times that.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

DRIVER = r"""
#define @P_IMPLEMENTATION
#include "policy.h"
#include <stddef.h>
#include <string.h>

#define CARRIED offsetof(@p_state, steps) /* counters and the room for long vectors lie behind what steps hand on */

typedef struct {
    @p_state memory;
    float params[@P_PARAMS];
    @p_action action[@P_ACTIONS];
} session;

void driver_sizes(int *sizes)
{
    sizes[0] = @P_OBS;
    sizes[1] = @P_PARAMS;
    sizes[2] = @P_ACTIONS;
    sizes[3] = (int)sizeof(@p_state);
    sizes[4] = (int)sizeof(session);
    sizes[5] = (int)offsetof(session, action);
    sizes[6] = (int)CARRIED;
}

/* one is room for a state; memory is what rows states carry, side by side, or null */
void driver_reset(int rows, @p_state *one, char *memory)
{
    int i;
    @p_reset(one);
    for (i = 0; i < rows; i++)
        memcpy(memory + i * CARRIED, one, CARRIED);
}

void driver_batch(int rows, const float *obs, const unsigned char *first, @p_state *one, char *memory, float *params,
                  @p_action *action)
{
    int i;
    @p_reset(one);
    for (i = 0; i < rows; i++) {
        if (memory)
            memcpy(one, memory + i * CARRIED, CARRIED);
        if (first[i])
            @p_reset(one);
        @p_step(one, obs + (ptrdiff_t)i * @P_OBS, params + (ptrdiff_t)i * @P_PARAMS, action + (ptrdiff_t)i * @P_ACTIONS);
        if (memory)
            memcpy(memory + i * CARRIED, one, CARRIED);
    }
}

void driver_outside(int rows, const float *obs, uint32_t *outside)
{
    int i;
    for (i = 0; i < rows; i++)
        outside[i] = @p_outside(obs + (ptrdiff_t)i * @P_OBS);
}

typedef struct {
    void *buf, *obj;
    ptrdiff_t len, itemsize;
    int readonly, ndim;
    char *format;
    ptrdiff_t *shape, *strides, *suboffsets;
    void *internal;
} buffer;

static int (*get_buffer)(void *, buffer *, int);
static void (*release_buffer)(buffer *);
static void *(*tuple_item)(void *, ptrdiff_t);
static void *(*to_int)(long);
static void (*take)(void *);
static void (*fail)(void *, const char *);
static void *value_error;

void driver_python(int (*get)(void *, buffer *, int), void (*release)(buffer *), void *(*item)(void *, ptrdiff_t),
                   void *(*integer)(long), void (*incref)(void *), void (*error)(void *, const char *), void *wrong)
{
    get_buffer = get, release_buffer = release, tuple_item = item, to_int = integer, take = incref, fail = error;
    value_error = wrong;
}

/* self is the tuple (bytearray of one session, array over its action) */
static session *seat(void *self, void *obs, buffer *in, buffer *own)
{
    if (get_buffer(obs, in, 4) != 0)
        return 0;
    if (in->len != (ptrdiff_t)sizeof(float) * @P_OBS || !in->format || in->format[0] != 'f' || in->format[1]) {
        release_buffer(in);
        fail(value_error, "expected a contiguous float32 array with as many numbers as the observation has");
        return 0;
    }
    if (get_buffer(tuple_item(self, 0), own, 1) != 0) {
        release_buffer(in);
        return 0;
    }
    return (session *)own->buf;
}

void *driver_one(void *self, void *obs)
{
    buffer in, own;
    long chosen;
    session *s = seat(self, obs, &in, &own);
    if (!s)
        return 0;
    @p_step(&s->memory, (const float *)in.buf, s->params, s->action);
    chosen = (long)s->action[0];
    release_buffer(&own);
    release_buffer(&in);
    return to_int(chosen);
}

void *driver_many(void *self, void *obs)
{
    buffer in, own;
    void *action;
    session *s = seat(self, obs, &in, &own);
    if (!s)
        return 0;
    @p_step(&s->memory, (const float *)in.buf, s->params, s->action);
    release_buffer(&own);
    release_buffer(&in);
    action = tuple_item(self, 1);
    take(action);
    return action;
}
"""

_METH_O = 8  # one positional argument


class _Def(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


class MethodDef:
    """The driver's step as something that Python can bind. Lives as long as the library: for ever."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.one, self.many = (
            _Def(b"step", ctypes.cast(function, ctypes.c_void_p), _METH_O, b"step(obs) -> executed action")
            for function in (library.driver_one, library.driver_many)
        )

    def bind(self, session: tuple[bytearray, Any], single: bool) -> Callable[[Any], Any]:
        """A built-in function over the session; `single` returns an int, otherwise the action array."""
        kind = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p)
        make = kind(("PyCFunction_NewEx", ctypes.pythonapi))
        bound: Callable[[Any], Any] = make(ctypes.addressof(self.one if single else self.many), session, None)
        return bound


def bind_python(library: ctypes.CDLL) -> MethodDef:
    """Hand the interpreter's functions to the driver."""
    api = ctypes.pythonapi
    functions = (
        api.PyObject_GetBuffer,
        api.PyBuffer_Release,
        api.PyTuple_GetItem,
        api.PyLong_FromLong,
        api.Py_IncRef,
        api.PyErr_SetString,
    )
    library.driver_python.argtypes = [*[ctypes.c_void_p] * len(functions), ctypes.py_object]
    library.driver_python.restype = None
    library.driver_python(*[ctypes.cast(f, ctypes.c_void_p) for f in functions], ValueError)
    return MethodDef(library)
