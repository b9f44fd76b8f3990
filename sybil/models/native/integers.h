/* Integer products, for drafts. Weights are rounded as in rounding.py, and inputs are rounded to 8 bits by blocks.

   A block of 32 inputs x is approximated by s r. The scale s = max |x| / 127 is a float32, and r are integers from -127
   to 127. The block's part of an output is d (s (q . r)) + m (s (1 . r)), where d, m and q are the weight's. Both sums
   of integers are exact, so they are the same by every processor's instructions. The rest is float32 in one order: block
   by block, the part with d before the part with m. */

#pragma once

#include <string.h>

#include "formats.h"

#if defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

#define BLOCK 32 /* inputs of a block */
#define LEAST 0x1p-100f /* a block whose largest |x| is below this counts as zeros, so that no scale is denormal */
#if defined(__AVX512F__) || defined(__aarch64__)
#define SHARED 6 /* rows that share the loads of weights; no more than registers hold */
#else
#define SHARED 3
#endif

typedef struct { /* rows of inputs in whole blocks: numbers (rows, 32 * blocks), scales and sums (rows, blocks) */
    int8_t *numbers;
    float *scales, *sums; /* sums: s (1 . r) */
    int64_t blocks;
} Rounded;

static inline int is_rounded(int32_t storage) { return storage >= R4 && storage <= R8; }

static inline int64_t blocks_of(int64_t inputs) { return whole(inputs, BLOCK) / BLOCK; }

/* The size of `rows` rounded rows, in floats. */
static inline int64_t rounded_floats(int64_t rows, int64_t inputs) { return rows * blocks_of(inputs) * (BLOCK / 4 + 2); }

static inline Rounded rounded_in(float *memory, int64_t rows, int64_t inputs) {
    const int64_t blocks = blocks_of(inputs);
    float *scales = memory + rows * blocks * (BLOCK / 4);
    return (Rounded){(int8_t *)memory, scales, scales + rows * blocks, blocks};
}

/* Rounds one block. Where an input is NaN or infinite, the scale becomes NaN, and so does every output. */
static void round_block(const float *x, int8_t *numbers, float *scale, float *of_sum) {
    int32_t bits[BLOCK], most = 0, sum = 0;
    memcpy(bits, x, sizeof(bits));
    for (int at = 0; at < BLOCK; at++) {
        const int32_t magnitude = bits[at] & 0x7fffffff; /* bits are ordered as numbers, NaN above all */
        most = magnitude > most ? magnitude : most;
    }
    float largest;
    memcpy(&largest, &most, sizeof(largest));
    const int sound = most < 0x7f800000 && largest >= LEAST;
    const float factor = sound ? 127.0f / largest : 0.0f;
    *scale = most >= 0x7f800000 ? NAN : sound ? largest / 127.0f : 0.0f;
    for (int at = 0; at < BLOCK; at++) {
        float shifted = fused(sound ? x[at] : 0.0f, factor, 12582912.0f); /* rounds to an integer in the lowest bits */
        memcpy(&bits[at], &shifted, sizeof(shifted));
    }
    for (int at = 0; at < BLOCK; at++) {
        numbers[at] = (int8_t)bits[at];
        sum += numbers[at];
    }
    *of_sum = *scale * (float)sum;
}

static void round_row(const float *x, int32_t inputs, const Rounded *to, int64_t row) {
    for (int64_t block = 0; block < to->blocks; block++) {
        const int64_t at = row * to->blocks + block;
        const int32_t some = smaller(BLOCK, inputs - block * BLOCK);
        float rest[BLOCK] = {0};
        if (some < BLOCK) memcpy(rest, x + block * BLOCK, some * sizeof(float));
        round_block(some < BLOCK ? rest : x + block * BLOCK, to->numbers + at * BLOCK, to->scales + at, to->sums + at);
    }
}

#if LANES == 16 && defined(__AVX512BW__)
#define OF(name) _mm512_##name
typedef __m512i Register;
#elif LANES == 8 && defined(__AVX2__)
#define OF(name) _mm256_##name
typedef __m256i Register;
#endif

/* sums += the dot product of each lane's four unsigned bytes with four signed bytes. */
static inline __attribute__((always_inline)) Ints dot(Ints sums, Ints weights, int32_t four, const int storage) {
#if LANES == 16 && defined(__AVX512VNNI__)
    return (Ints)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)weights, _mm512_set1_epi32(four));
#elif LANES == 8 && defined(__AVX512VNNI__) && defined(__AVX512VL__)
    return (Ints)_mm256_dpbusd_epi32((__m256i)sums, (__m256i)weights, _mm256_set1_epi32(four));
#elif LANES == 8 && defined(__AVXVNNI__)
    return (Ints)_mm256_dpbusd_avx_epi32((__m256i)sums, (__m256i)weights, _mm256_set1_epi32(four));
#elif (LANES == 16 && defined(__AVX512BW__)) || (LANES == 8 && defined(__AVX2__))
    /* Two products are added in 16 bits, which can saturate. So for 8 bits the highest bit is multiplied separately, as
       64, and doubled. */
    const Register inputs = OF(set1_epi32)(four), ones = OF(set1_epi16)(1), twos = OF(set1_epi16)(2);
    if (storage != R8) return sums + (Ints)OF(madd_epi16)(OF(maddubs_epi16)((Register)weights, inputs), ones);
    const Register low = (Register)(weights & 0x7f7f7f7f), high = (Register)(weights >> 1 & 0x40404040);
    return sums + (Ints)OF(madd_epi16)(OF(maddubs_epi16)(low, inputs), ones)
           + (Ints)OF(madd_epi16)(OF(maddubs_epi16)(high, inputs), twos);
#elif defined(__ARM_FEATURE_DOTPROD)
    /* The instruction takes signed bytes only: 8-bit weights go in minus 128, and 128 times the inputs are added. */
    const int8x16_t inputs = vreinterpretq_s8_s32(vdupq_n_s32(four));
    int32x4_t products[LANES / 4];
    if (storage == R8) {
        weights ^= (int32_t)0x80808080;
        for (int at = 0; at < 32; at += 8) sums += 128 * (int8_t)(four >> at);
    }
    memcpy(products, &weights, sizeof(products));
    for (int part = 0; part < LANES / 4; part++)
        products[part] = vdotq_s32(vdupq_n_s32(0), vreinterpretq_s8_s32(products[part]), inputs);
    memcpy(&weights, products, sizeof(weights));
    return sums + weights;
#else
    for (int at = 0; at < 32; at += 8) sums += (weights >> at & 255) * (int8_t)(four >> at);
    return sums;
#endif
}

/* The integers q of the inputs 4 group to 4 group + 3, for the outputs from `at` on, a byte each. words: a record's words
   after its scales. */
static inline __attribute__((always_inline)) Ints q_of(const uint8_t *words, int group, int at, const int storage) {
    const int row = 4 * PANEL, above = storage == R5 ? 1 : storage == R6 ? 2 : 0, place = group * above;
    words += 4 * at;
    if (storage == R8) return ints(words + group * row);
    const Ints q = ints(words + group / 2 * row) >> group % 2 * 4 & 0x0f0f0f0f;
    if (!above) return q;
    const Ints high = ints(words + (4 + place / 8) * row), mask = (Ints){0} + (storage == R5 ? 0x10101010 : 0x30303030);
    return q | ((place % 8 < 4 ? high << (4 - place % 8) : high >> (place % 8 - 4)) & mask);
}

/* sums[row] += the rounded rows of inputs from `row` on, times a panel. rows is a constant wherever this is inlined. */
static inline __attribute__((always_inline)) void multiply_rounded(const uint8_t *record, const Rounded *x, int64_t row,
                                                                   const int rows, Lanes (*sums)[WIDE], const int storage) {
    const Record size = record_of(storage);
    const int8_t *numbers = x->numbers + row * x->blocks * BLOCK;
    const float *scales = x->scales + row * x->blocks, *of_sums = x->sums + row * x->blocks;
    for (int64_t block = 0; block < x->blocks; block++, record += size.bytes) {
        Ints dots[SHARED][WIDE];
        for (int each = 0; each < rows; each++)
            for (int at = 0; at < WIDE; at++) dots[each][at] = (Ints){0};
#pragma GCC unroll 8
        for (int group = 0; group < BLOCK / 4; group++) {
            Ints q[WIDE];
            for (int at = 0; at < WIDE; at++) q[at] = q_of(record + size.scales, group, at * LANES, storage);
            for (int ahead = 0; ahead < size.bytes / 8; ahead += 64)
                __builtin_prefetch(record + size.bytes / 8 * group + ahead + AHEAD, 0, 1);
#pragma GCC unroll 6
            for (int each = 0; each < rows; each++) {
                int32_t four;
                memcpy(&four, numbers + (each * x->blocks + block) * BLOCK + 4 * group, sizeof(four));
                for (int at = 0; at < WIDE; at++) dots[each][at] = dot(dots[each][at], q[at], four, storage);
            }
        }
        for (int at = 0; at < WIDE; at++) {
            const Lanes scale = from_float16(record + 2 * at * LANES), least = from_float16(record + 2 * (PANEL + at * LANES));
            for (int each = 0; each < rows; each++) {
                const int64_t place = each * x->blocks + block;
                sums[each][at] += scale * (all(scales[place]) * as_float(dots[each][at]));
                sums[each][at] += least * all(of_sums[place]);
            }
        }
    }
}

#define OF_ROUNDED(CASE) CASE(R4) CASE(R5) CASE(R6) CASE(R8)

/* sums = `rows` rounded rows of inputs from `row` on, times a panel of that storage. */
static void rounded_sums(const uint8_t *panel, int32_t storage, const Rounded *x, int64_t row, int32_t rows,
                         Lanes (*sums)[WIDE]) {
    const int32_t tiles = (rows + SHARED - 1) / SHARED, tile = (rows + tiles - 1) / tiles;
    memset(sums, 0, rows * sizeof(sums[0]));
    for (int32_t first = 0; first < rows; first += tile) {
        const int32_t some = smaller(tile, rows - first);
#define SO_MANY(storage, count)                                                                                        \
    case SHARED * storage + count - 1: multiply_rounded(panel, x, row + first, count, sums + first, storage); break;
#if SHARED > 3
#define OF_TILE(storage)                                                                                               \
    SO_MANY(storage, 1) SO_MANY(storage, 2) SO_MANY(storage, 3) SO_MANY(storage, 4) SO_MANY(storage, 5) SO_MANY(storage, 6)
#else
#define OF_TILE(storage) SO_MANY(storage, 1) SO_MANY(storage, 2) SO_MANY(storage, 3)
#endif
        switch (SHARED * storage + some - 1) { OF_ROUNDED(OF_TILE) }
    }
}

/* `inputs` weights of one output, at a place of its panel, in float32 as rounding.py decodes them. */
static void unpack_rounded(const uint8_t *record, int32_t storage, int32_t place, int32_t inputs, float *out) {
    const int lane = place % LANES, at = place - lane;
    const Record size = record_of(storage);
    for (int32_t first = 0; first < inputs; first += 4) {
        const int group = first % BLOCK / 4;
        const float scale = from_float16(record + 2 * at)[lane], least = from_float16(record + 2 * (PANEL + at))[lane];
        uint32_t q = 0;
#define ITS_Q(storage) case storage: q = q_of(record + size.scales, group, at, storage)[lane]; break;
        switch (storage) { OF_ROUNDED(ITS_Q) }
        for (int32_t each = 0; each < smaller(4, inputs - first); each++)
            out[first + each] = scale * (float)(q >> 8 * each & 255) + least;
        if (group == BLOCK / 4 - 1) record += size.bytes;
    }
}
