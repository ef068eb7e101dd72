/* The mathematics a policy may call, for machines without a C library (WebAssembly).
 *
 * Every function computes in double, where series and reductions leave about 1e-11 of relative error, and rounds once:
 * the float result is within one unit in its last place. NaN passes. */
#ifndef FREESTANDING_MATH_H
#define FREESTANDING_MATH_H
#include <stdint.h>

#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define isnan(x) ((x) != (x))
#define isinf(x) __builtin_isinf(x)
#define isfinite(x) __builtin_isfinite(x)

/* these are instructions of WebAssembly */
static inline float sqrtf(float x) { return __builtin_sqrtf(x); }
static inline float fabsf(float x) { return __builtin_fabsf(x); }
static inline float floorf(float x) { return __builtin_floorf(x); }
static inline float ceilf(float x) { return __builtin_ceilf(x); }
static inline float truncf(float x) { return __builtin_truncf(x); }
static inline float rintf(float x) { return __builtin_rintf(x); }
static inline float nearbyintf(float x) { return __builtin_nearbyintf(x); }
static inline float copysignf(float x, float y) { return __builtin_copysignf(x, y); }

static inline float fminf(float x, float y) { return x < y || y != y ? x : y; }
static inline float fmaxf(float x, float y) { return x > y || y != y ? x : y; }

static inline double free_power_of_two(int64_t k) /* 2^k, -1022 <= k <= 1023 */
{
    union {
        uint64_t bits;
        double value;
    } u = {(uint64_t)(k + 1023) << 52};
    return u.value;
}

/* e^x = 2^k e^r with |r| <= log(2) / 2; the series of e^r ends below 1e-16 */
static inline double free_exp(double x)
{
    const double k = __builtin_rint(x * 1.4426950408889634);
    const double r = (x - k * 6.93147180369123816490e-01) - k * 1.90821492927058770002e-10; /* log 2 in two parts */
    double sum = 1.0;
    int i;
    if (x != x)
        return x;
    if (x > 200.0) /* both are beyond float */
        return (double)INFINITY;
    if (x < -200.0)
        return 0.0;
    for (i = 13; i > 0; i--)
        sum = 1.0 + sum * r / i;
    return sum * free_power_of_two((int64_t)k);
}

static inline double free_expm1(double x)
{
    return x > -1e-5 && x < 1e-5 ? x + 0.5 * x * x : free_exp(x) - 1.0;
}

/* log x = k log 2 + 2 artanh s, s = (m - 1) / (m + 1), 1 / sqrt 2 <= m < sqrt 2; the series ends below 1e-16 */
static inline double free_log(double x)
{
    union {
        double value;
        uint64_t bits;
    } u = {x};
    int64_t k = (int64_t)((u.bits >> 52) & 0x7ff) - 1023;
    double s, square, sum = 0.0;
    int i;
    if (!(x > 0.0))
        return x == 0.0 ? -(double)INFINITY : (double)NAN;
    if (__builtin_isinf(x))
        return x;
    u.bits = (u.bits & 0xfffffffffffffULL) | 0x3ff0000000000000ULL;
    if (u.value > 1.4142135623730951) {
        u.value *= 0.5;
        k++;
    }
    s = (u.value - 1.0) / (u.value + 1.0);
    square = s * s;
    for (i = 21; i > 0; i -= 2)
        sum = 1.0 / i + sum * square;
    return (double)k * 0.6931471805599453 + 2.0 * s * sum;
}

static inline float expf(float x) { return (float)free_exp((double)x); }

static inline float expm1f(float x) { return (float)free_expm1((double)x); }

static inline float logf(float x) { return (float)free_log((double)x); }

static inline float log1pf(float x)
{
    return x > -1e-5f && x < 1e-5f ? (float)((double)x - 0.5 * (double)x * (double)x) : (float)free_log(1.0 + (double)x);
}

static inline float tanhf(float x)
{
    double t;
    if (x > 10.0f || x < -10.0f) /* 1 - tanh 10 is below half a unit in the last place */
        return x > 0.0f ? 1.0f : -1.0f;
    t = free_expm1(2.0 * (double)x);
    return (float)(t / (t + 2.0));
}

/* erf x = 2 / sqrt(pi) e^(-x^2) sum_n 2^n x^(2n+1) / (2n+1)!!, all terms of one sign (Abramowitz & Stegun 7.1.6) */
static inline float erff(float x)
{
    const double square = (double)x * (double)x;
    double term = (double)x, sum = (double)x;
    int n;
    if (x > 4.0f || x < -4.0f)
        return x > 0.0f ? 1.0f : -1.0f;
    for (n = 1; n < 72; n++) {
        term *= 2.0 * square / (2 * n + 1);
        sum += term;
    }
    return (float)(1.1283791670955126 * free_exp(-square) * sum);
}

#endif
