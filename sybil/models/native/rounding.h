/* Rounds weights to blocks of few bits, with the same bytes as rounding.py. Its comments say what is computed.

   Sums are in double precision, and most of their products are exact in it, so it doesn't matter which of them a compiler
   fuses with an addition. apart() keeps compilers from fusing the other products. */

#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "integers.h"

static inline double apart(double value) {
    volatile double kept = value;
    return kept;
}

static float of_half(uint16_t half) {
    const uint32_t magnitude = half & 0x7fff, sign = (uint32_t)(half & 0x8000) << 16;
    if (magnitude < 0x400) return (sign ? -1.0f : 1.0f) * (float)magnitude * 0x1p-24f;
    const uint32_t bits = sign | (magnitude >= 0x7c00 ? (magnitude << 13) + (224 << 23) : (magnitude << 13) + (112 << 23));
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

/* The nearest float16 number; halfway between two, the even one. */
static uint16_t to_half(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    const uint32_t magnitude = bits & 0x7fffffff, sign = bits >> 16 & 0x8000;
    if (magnitude > 0x7f800000) return sign | 0x7e00;
    if (magnitude >= 0x477ff000) return sign | 0x7c00; /* halfway from the largest number to the next one, or more */
    if (magnitude < 0x38800000) return sign | (uint16_t)lrint(fabs((double)value) * 0x1p24);
    return sign | ((magnitude + 0xfff + (magnitude >> 13 & 1) - (112 << 23)) >> 13);
}

static uint16_t half_below(float value) {
    const uint16_t near = to_half(value);
    return of_half(near) > value ? near + (near & 0x8000 ? 1 : -1) : near;
}

static uint16_t half_above(float value) {
    const uint16_t near = to_half(value);
    return near + (of_half(near) < value * 0x0.fffffp0f);
}

/* NaN stays NaN. */
static __attribute__((noinline)) void nearest(const float *weight, uint16_t scale, uint16_t least, float most, float *q) {
    const float step = of_half(scale), low = of_half(least), factor = step > 0 ? 1.0f / step : 0.0f;
    for (int at = 0; at < BLOCK; at++) {
        float place = (weight[at] - low) * factor;
        place = place < 0.0f ? 0.0f : place;
        place = place > most ? most : place;
        q[at] = (place + 12582912.0f) - 12582912.0f; /* an integer */
    }
}

/* The sum of 32 numbers. The second half is added to the first, pair by pair, and so on with the sums. */
static __attribute__((noinline)) double halved(double *terms) {
#pragma GCC unroll 5
    for (int half = BLOCK / 2; half; half /= 2)
        for (int at = 0; at < half; at++) terms[at] += terms[at + half];
    return terms[0];
}

static __attribute__((noinline)) double error_of(const float *weight, uint16_t scale, uint16_t least, const float *q, const double *counting) {
    const float step = of_half(scale), low = of_half(least);
    double terms[BLOCK];
    for (int at = 0; at < BLOCK; at++) {
        const float away = weight[at] - low - q[at] * step, square = away * away;
        terms[at] = (double)square * counting[at];
    }
    return halved(terms);
}

static void fit(const float *weight, uint16_t *scale, uint16_t *least, float most, const double *counting) {
    float q[BLOCK], other[BLOCK];
    double total[BLOCK], of_q[BLOCK], of_weight[BLOCK], of_squares[BLOCK], of_both[BLOCK];
    nearest(weight, *scale, *least, most, q);
    for (int at = 0; at < BLOCK; at++) {
        total[at] = counting[at];
        of_q[at] = counting[at] * q[at];
        of_weight[at] = counting[at] * weight[at];
        of_squares[at] = of_q[at] * q[at];
        of_both[at] = of_q[at] * weight[at];
    }
    const double all = halved(total), qs = halved(of_q), weights = halved(of_weight);
    const double spread = apart(all * halved(of_squares)) - apart(qs * qs);
    const double slope = (apart(all * halved(of_both)) - apart(qs * weights)) / spread;
    const uint16_t new_scale = to_half((float)slope), new_least = to_half((float)((weights - apart(slope * qs)) / all));
    if (!(of_half(new_scale) > 0)) return;
    nearest(weight, new_scale, new_least, most, other);
    if (!(error_of(weight, new_scale, new_least, other, counting) < error_of(weight, *scale, *least, q, counting))) return;
    *scale = new_scale;
    *least = new_least;
}

/* See the top of rounding.py. */
static void put_bits(const float *q, int32_t bits, uint8_t *out) {
    uint8_t numbers[BLOCK];
    for (int at = 0; at < BLOCK; at++) numbers[at] = (uint8_t)(int32_t)q[at];
    if (bits == 8) {
        memcpy(out, numbers, BLOCK);
        return;
    }
    const int above = bits - 4;
    memset(out, 0, 4 * bits);
    for (int at = 0; at < BLOCK; at++) out[at / 8 * 4 + at % 4] |= (numbers[at] & 15) << at / 4 % 2 * 4;
    for (int at = 0; above && at < BLOCK; at++) {
        const int place = at / 4 * above;
        out[16 + place / 8 * 4 + at % 4] |= (numbers[at] >> 4) << place % 8;
    }
}

static __attribute__((noinline)) void one_block(const float *weight, int32_t bits, const double *counting, uint8_t *out) {
    const float most = (float)((1 << bits) - 1);
    float lows[BLOCK], highs[BLOCK], q[BLOCK];
    int sound = 1;
    for (int at = 0; at < BLOCK; at++) {
        lows[at] = highs[at] = weight[at];
        sound &= fabsf(weight[at]) <= 3.4028235e38f;
    }
#pragma GCC unroll 5
    for (int half = BLOCK / 2; half; half /= 2)
        for (int at = 0; at < half; at++) {
            lows[at] = lows[at + half] < lows[at] ? lows[at + half] : lows[at];
            highs[at] = highs[at + half] > highs[at] ? highs[at + half] : highs[at];
        }
    uint16_t least = half_below(lows[0] + 0.0f), scale = half_above((highs[0] + 0.0f - of_half(least)) / most);
    sound = sound && isfinite(of_half(least)) && isfinite(of_half(scale));
    if (sound && counting) fit(weight, &scale, &least, most, counting);
    if (sound && isfinite(of_half(least)) && isfinite(of_half(scale))) nearest(weight, scale, least, most, q);
    else {
        least = scale = 0x7e00;
        memset(q, 0, sizeof(q));
    }
    memcpy(out, &scale, 2);
    memcpy(out + 2, &least, 2);
    put_bits(q, bits, out + 4);
}

/* weight (outputs, inputs) -> blocks (outputs, whole blocks). counting: (inputs in whole blocks,), or NULL. */
void sybil_round(const float *weight, int64_t outputs, int64_t inputs, int32_t bits, const double *counting, uint8_t *blocks) {
    for (int64_t output = 0; output < outputs; output++, weight += inputs)
        for (int64_t first = 0; first < inputs; first += BLOCK, blocks += 4 + 4 * bits) {
            float rest[BLOCK];
            const int32_t some = smaller(BLOCK, inputs - first);
            for (int at = 0; some < BLOCK && at < BLOCK; at++) rest[at] = weight[first + (at < some ? at : some - 1)];
            one_block(some < BLOCK ? rest : weight + first, bits, counting ? counting + first : NULL, blocks);
        }
}
