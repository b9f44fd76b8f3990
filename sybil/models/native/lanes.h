/* A vector of floats, as wide as the processor's, and functions of such vectors. */

#pragma once

#include <math.h>
#include <stdint.h>

#include "model.h"

#ifndef LANES
#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8
#endif
#endif

typedef float Lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t Half __attribute__((may_alias));

static inline int64_t whole(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }
static inline int32_t smaller(int32_t a, int32_t b) { return a < b ? a : b; }
static inline Lanes load(const float *from) { return *(const Lanes *)from; }
static inline void store(float *to, Lanes lanes) { *(Lanes *)to = lanes; }
/* a * b + c, rounded once where the processor can do that. Compilers fuse products by themselves too. In a * b - c * d
   either product could be fused, and which one a compiler chooses differs between processors; so it is written here. */
static inline float fused(float a, float b, float c) {
#if defined(__FMA__) || defined(__FP_FAST_FMAF) || defined(__ARM_FEATURE_FMA)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}
static inline Lanes all(float value) { return value - (Lanes){0}; } /* a compiler may drop "- 0" */
static inline float sum(Lanes lanes) {
    float half[LANES];
    store(half, lanes);
    for (int width = LANES / 2; width; width /= 2)
        for (int lane = 0; lane < width; lane++) half[lane] += half[lane + width];
    return half[0];
}

/* ---- functions of a vector ---- */

static inline Lanes choose(Ints mask, Lanes yes, Lanes no) { return (Lanes)((mask & (Ints)yes) | (~mask & (Ints)no)); }

/* e^x = 2^n * e^r with |r| <= ln(2) / 2; e^r by its Taylor series to r^7 (relative error below 2e-7). The result is
   infinite from 88.4 on, where n is 128, and never less than e^-87. NaN stays NaN: both comparisons are false for it, and
   the last product keeps it. */
static inline Lanes exponential(Lanes x) {
    x = choose(x < all(-87.0f), all(-87.0f), x);
    x = choose(x > all(89.0f), all(89.0f), x);
    Lanes shifted = x * all(1.44269504f) + all(12582912.0f); /* adding 1.5 * 2^23 rounds to an integer */
    Lanes n = shifted - all(12582912.0f);
    Lanes r = x - n * all(0.693359375f) + n * all(2.12194440e-4f);
    Lanes series = all(1.0f / 5040);
    series = series * r + all(1.0f / 720);
    series = series * r + all(1.0f / 120);
    series = series * r + all(1.0f / 24);
    series = series * r + all(1.0f / 6);
    series = series * r + all(0.5f);
    series = series * r + all(1.0f);
    series = series * r + all(1.0f);
    return series * (Lanes)(((Ints)shifted - (Ints)all(12582912.0f) + 127) << 23); /* 2^n: its exponent alone */
}

/* tanh(x) = 1 - 2 / (e^2x + 1). Near 0, where that loses digits by cancellation, its Taylor series to x^9. The relative
   error is below 1e-7 near 0 and below 3e-7 elsewhere. NaN stays NaN. */
static inline Lanes hyperbolic_tangent(Lanes x) {
    Lanes square = x * x;
    Lanes series = all(62.0f / 2835);
    series = series * square + all(-17.0f / 315);
    series = series * square + all(2.0f / 15);
    series = series * square + all(-1.0f / 3);
    series = series * square + all(1.0f);
    return choose(square < all(0.0625f), x * series, all(1.0f) - all(2.0f) / (exponential(x + x) + all(1.0f)));
}

static inline Lanes capped(Lanes x, float cap) { return all(cap) * hyperbolic_tangent(x / all(cap)); }

static inline Lanes activate(Lanes x, int32_t activation) {
    if (activation == RELU) return choose(x < all(0.0f), all(0.0f), x); /* NaN stays */
    if (activation == SILU) return x / (all(1.0f) + exponential(-x));
    if (activation == GELU_TANH) { /* x / 2 * (1 + tanh(z)) = x * sigmoid(2z) */
        Lanes z = all(1.5957691216f) * (x + all(0.044715f) * x * x * x);
        return x / (all(1.0f) + exponential(-z));
    }
    if (activation == GELU) { /* x / 2 * (1 + erf(x / sqrt 2)), erf by Abramowitz and Stegun 7.1.26 (1.5e-7) */
        Lanes magnitude = choose(x < all(0.0f), -x, x) * all(0.70710678f);
        Lanes t = all(1.0f) / (all(1.0f) + all(0.3275911f) * magnitude);
        Lanes series = all(1.061405429f);
        series = series * t + all(-1.453152027f);
        series = series * t + all(1.421413741f);
        series = series * t + all(-0.284496736f);
        series = series * t + all(0.254829592f);
        Lanes tail = series * t * exponential(-magnitude * magnitude); /* 1 - erf(magnitude) */
        return all(0.5f) * x * choose(x < all(0.0f), tail, all(2.0f) - tail);
    }
    return x;
}
