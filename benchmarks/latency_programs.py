"""The C programs that c_latency.py times: the exported policy, the arithmetic floor, ONNX Runtime through its C API."""

from __future__ import annotations

CLOCK = r"""
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1e9 + t.tv_nsec; }
static float observations[64][8];
static void observe(void) {
    int i;
    for (i = 0; i < 64 * 8; i++)
        observations[i / 8][i % 8] = (float)(i * 7 % 31) / 8.0f - 2.0f;
}
"""

LOOP = (
    CLOCK
    + r"""
#define LIMBECK_IMPLEMENTATION
#include "policy.h"

int main(void)
{
    float params[LIMBECK_PARAMS];
    limbeck_action action[LIMBECK_ACTIONS];
    limbeck_state memory;
    long sum = 0;
    double best = 1e30;
    int i, round;
    observe();
    limbeck_reset(&memory);
    for (round = 0; round < 64; round++) {
        double begin = now(), spent;
        for (i = 0; i < 6400; i++) {
            limbeck_step(&memory, observations[i % 64], params, action);
            sum += action[0];
        }
        spent = (now() - begin) / 6400;
        best = spent < best ? spent : best;
    }
    printf("%.3f %.6f\n", best, (double)sum / (64 * 6400));
    return 0;
}
"""
)

# Prints nanoseconds: per multiply-add of 12 independent chains in registers, per multiply-add of weights that are read in
# order, per tanh of 8 independent chains in registers, the cheaper of two formulas; and the lanes. Fails where a formula
# is not as exact as the exported one.
FLOOR = (
    CLOCK
    + r"""
#include <math.h>
#if defined(__AVX512F__)
#define LANES 16
#define CHAINS 16
#elif defined(__AVX__)
#define LANES 8
#define CHAINS 8
#else
#define LANES 4
#define CHAINS 8
#endif
typedef float vec __attribute__((vector_size(LANES * 4)));
typedef int mask __attribute__((vector_size(LANES * 4)));
static float weights[4864] __attribute__((aligned(64)));

static __attribute__((noinline)) double arithmetic(vec m, vec s, vec *out)
{
    /* different beginnings: equal chains would be merged by the compiler */
    vec a = s, b = a + s, c = b + s, d = c + s, e = d + s, f = e + s;
    vec g = f + s, h = g + s, i = h + s, j = i + s, k = j + s, l = k + s;
    double begin = now();
    int n;
    for (n = 0; n < 20000; n++) {
        a = a * m + s, b = b * m + s, c = c * m + s, d = d * m + s, e = e * m + s, f = f * m + s;
        g = g * m + s, h = h * m + s, i = i * m + s, j = j * m + s, k = k * m + s, l = l * m + s;
    }
    begin = (now() - begin) / (20000.0 * 12 * LANES);
    *out += a + b + c + d + e + f + g + h + i + j + k + l;
    return begin;
}

static __attribute__((noinline)) double reading(vec m, vec *out)
{
    vec sums[CHAINS];
    double begin = now();
    int n, i, k;
    for (k = 0; k < CHAINS; k++)
        sums[k] = m;
    for (n = 0; n < 2000; n++) {
        const float *w = weights;
        __asm__ volatile("" : : : "memory"); /* read again */
        for (i = 0; i < 4864; i += CHAINS * LANES) {
#pragma GCC unroll 16
            for (k = 0; k < CHAINS; k++)
                sums[k] = m * *(const vec *)(w + i + k * LANES) + sums[k];
        }
    }
    begin = (now() - begin) / (2000.0 * 4864);
    for (k = 0; k < CHAINS; k++)
        *out += sums[k];
    return begin;
}

/* v P(v^2) / Q(v^2), and 1 beyond 8; `newton`: 1 / Q from its exponent and three of Newton's steps, no division */
static inline __attribute__((always_inline)) vec tanh_of(vec v, int newton)
{
    const vec zero = {0}, u = v * v;
    const vec p = (((0x1.7f7966p-17f * u + 0x1.82cbecp-9f) * u + 0x1.08b7b4p-3f) * u + 0x1.fffffcp-1f) * v;
    const vec q = (((0x1.080e42p-22f * u + 0x1.f48688p-13f) * u + 0x1.8631acp-6f) * u + 0x1.d9b0ep-2f) * u + 1.0f;
    const mask far = (mask)(u > 64.0f), one = ((mask)v & (mask)-zero) | (mask)(zero + 1.0f);
    vec r, y;
    if (newton) {
        r = (vec)(0x7ef127ea - (mask)q);
        r = r * (2.0f - q * r);
        r = r * (2.0f - q * r);
        r = r * (2.0f - q * r);
        y = p * r;
    } else
        y = p / q;
    return (vec)((far & one) | (~far & (mask)y));
}

#define SQUASHING(name, newton) \
static __attribute__((noinline)) double name(vec s, vec *out) \
{ \
    vec a = s, b = a + s, c = b + s, d = c + s, e = d + s, f = e + s, g = f + s, h = g + s; \
    double begin = now(); \
    int n; \
    for (n = 0; n < 500; n++) { \
        a = tanh_of(a, newton), b = tanh_of(b, newton), c = tanh_of(c, newton), d = tanh_of(d, newton); \
        e = tanh_of(e, newton), f = tanh_of(f, newton), g = tanh_of(g, newton), h = tanh_of(h, newton); \
    } \
    begin = (now() - begin) / (500.0 * 8 * LANES); \
    *out += a + b + c + d + e + f + g + h; \
    return begin; \
}
SQUASHING(dividing, 0)
SQUASHING(newtons, 1)

static int exact(int newton)
{
    int i;
    for (i = -100000; i <= 100000; i++) {
        const vec y = tanh_of((vec){0} + (float)i * 1e-4f, newton);
        if (!(fabs((double)y[0] - tanh((double)((float)i * 1e-4f))) <= 6e-7))
            return 0;
    }
    return 1;
}

int main(int argc, char **argv)
{
    const vec m = (vec){0} + 0.999f, s = (vec){0} + 0.001f * (float)argc;
    vec out = s;
    double best = 1e30, read = 1e30, squash = 1e30;
    int round;
    (void)argv;
    if (!exact(0) || !exact(1))
        return 1;
    for (round = 0; round < 64; round++) {
        double spent = arithmetic(m, s, &out);
        best = spent < best ? spent : best;
        spent = reading(m, &out);
        read = spent < read ? spent : read;
        spent = dividing(s, &out);
        squash = spent < squash ? spent : squash;
        spent = newtons(s, &out);
        squash = spent < squash ? spent : squash;
    }
    observe();
    printf("%.9f %.9f %.9f %d %f\n", best, read, squash, LANES, (double)out[0]);
    return 0;
}
"""
)

# ONNX Runtime's C API is a table of functions that only grows at its end; these are places in its first version.
RUNTIME = (
    CLOCK
    + r"""
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
typedef struct { const void *const *(*api)(uint32_t); const char *(*version)(void); } api_base;
#define CALL(place, types) ((void *(*) types)api[place])
#define CREATE_ENV 3
#define CREATE_SESSION 7
#define RUN 9
#define CREATE_OPTIONS 10
#define INTRA_THREADS 24
#define INTER_THREADS 25
#define TENSOR_WITH_DATA 49
#define CPU_MEMORY 69
#define MESSAGE 2
static const void *const *api;
static void must(void *status)
{
    if (status) {
        fprintf(stderr, "%s\n", ((const char *(*)(void *))api[MESSAGE])(status));
        exit(1);
    }
}

int main(int argc, char **argv)
{
    static const char *const in_name[] = {"obs"}, *const out_name[] = {"action"};
    static float obs[8];
    static int64_t action[1];
    const int64_t in_shape[] = {1, 8}, out_shape[] = {1, 1};
    void *library = argc > 2 ? dlopen(argv[1], RTLD_NOW) : 0, *env, *options, *session, *memory, *in, *out;
    double best = 1e30;
    long sum = 0;
    int i, k, round;
    if (!library)
        return 2;
    api = (*(const api_base *(**)(void))&(void *){dlsym(library, "OrtGetApiBase")})()->api(1);
    must(CALL(CREATE_ENV, (int, const char *, void **))(3, "bench", &env));
    must(CALL(CREATE_OPTIONS, (void **))(&options));
    must(CALL(INTRA_THREADS, (void *, int))(options, 1));
    must(CALL(INTER_THREADS, (void *, int))(options, 1));
    must(CALL(CREATE_SESSION, (void *, const char *, void *, void **))(env, argv[2], options, &session));
    must(CALL(CPU_MEMORY, (int, int, void **))(0, 0, &memory));
    must(CALL(TENSOR_WITH_DATA, (void *, void *, size_t, const int64_t *, size_t, int, void **))(
        memory, obs, sizeof obs, in_shape, 2, 1, &in));
    must(CALL(TENSOR_WITH_DATA, (void *, void *, size_t, const int64_t *, size_t, int, void **))(
        memory, action, sizeof action, out_shape, 2, 7, &out));
    observe();
    for (round = 0; round < 40; round++) {
        double begin = now(), spent;
        for (i = 0; i < 640; i++) {
            for (k = 0; k < 8; k++)
                obs[k] = observations[i % 64][k];
            must(CALL(RUN, (void *, void *, const char *const *, void *const *, size_t, const char *const *, size_t, void **))(
                session, 0, in_name, &in, 1, out_name, 1, &out));
            sum += (long)action[0];
        }
        spent = (now() - begin) / 640;
        best = spent < best ? spent : best;
    }
    printf("%.3f %.6f\n", best, (double)sum / (40 * 640));
    return 0;
}
"""
)
