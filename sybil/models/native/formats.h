/* What a weight lies in, and the way from there to float32.

   A weight lies in panels of PANEL outputs, a panel in records of so many inputs. A record has the scales of all its
   outputs first, padded to a whole vector, and then their numbers; of each kind a row of PANEL lies together, so that
   a vector holds the same of as many outputs. What a file's block has in 4 bytes is a word here and stays as it is. */

#pragma once

#include "lanes.h"

#if defined(__AVX2__) || defined(__F16C__)
#include <immintrin.h>
#endif

#define WIDE 3               /* vectors of outputs computed together: */
#define PANEL (WIDE * LANES) /* so many outputs */
#define RUN 32               /* inputs taken to float32 together */

typedef struct { /* of a panel; bytes: scales included */
    int32_t inputs, scales, bytes;
} Record;

static inline Record record_of(int32_t storage) {
    static const struct { int32_t inputs, scales, numbers; } output[STORAGES] = { /* bytes of one output */
        [FLOAT32] = {1, 0, 4},    [BFLOAT16] = {1, 0, 2},   [INT8] = {1, 0, 1},      [F16] = {1, 0, 2},
        [Q8_0] = {32, 2, 32},     [Q4_0] = {32, 2, 16},     [Q4_1] = {32, 4, 16},    [Q5_0] = {32, 2, 20},
        [Q5_1] = {32, 4, 20},     [Q4_K] = {256, 20, 128},  [Q5_K] = {256, 20, 160}, [Q6_K] = {256, 18, 192},
        [IQ4_NL] = {32, 2, 16},   [MXFP4] = {32, 1, 16},
    };
    const int32_t scales = whole(output[storage].scales * PANEL, 4 * LANES);
    return (Record){output[storage].inputs, scales, scales + output[storage].numbers * PANEL};
}

static inline Ints ints(const void *from) { return *(const Ints *)from; }

/* As many small integers from memory; compilers find the instruction for 4 lanes alone. */
#if LANES == 16 && defined(__AVX512F__)
#define WIDENED(kind, size, from) (Ints)_mm512_cvtep##kind##_epi32(LOADED_##size(from))
#define LOADED_1(from) _mm_loadu_si128((const __m128i *)(from))
#define LOADED_2(from) _mm256_loadu_si256((const __m256i *)(from))
#elif LANES == 8 && defined(__AVX2__)
#define WIDENED(kind, size, from) (Ints)_mm256_cvtep##kind##_epi32(LOADED_##size(from))
#define LOADED_1(from) _mm_loadl_epi64((const __m128i *)(from))
#define LOADED_2(from) _mm_loadu_si128((const __m128i *)(from))
#else
#define WIDENED(kind, size, from) each_##kind(from)
#define EACH_OF(kind, type)                                                        \
    static inline Ints each_##kind(const void *from) {                             \
        int32_t wide[LANES];                                                       \
        for (int lane = 0; lane < LANES; lane++) wide[lane] = ((const type *)from)[lane]; \
        return ints(wide);                                                         \
    }
EACH_OF(u8, uint8_t)
EACH_OF(i8, int8_t)
EACH_OF(u16, Half)
#endif

static inline Ints bytes(const uint8_t *from) { return WIDENED(u8, 1, from); }
static inline Ints signed_bytes(const uint8_t *from) { return WIDENED(i8, 1, from); }
static inline Ints halves(const uint8_t *from) { return WIDENED(u16, 2, from); }
static inline Lanes as_float(Ints integer) { return __builtin_convertvector(integer, Lanes); }

/* float16 to float32, exact: no step of it has a denormal float32, which a processor may be told to take for zero. */
static inline Lanes from_float16(const uint8_t *from) {
#if LANES == 16 && defined(__AVX512F__)
    return (Lanes)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from));
#elif LANES == 8 && defined(__F16C__)
    return (Lanes)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from));
#else
    Ints half = halves(from), magnitude = half & 0x7fff, normal = (magnitude << 13) + (112 << 23);
    Ints small = (Ints)(as_float(magnitude) * all(0x1p-24f)), special = normal + (112 << 23);
    Ints found = (Ints)choose(magnitude < 0x400, (Lanes)small, (Lanes)normal);
    return (Lanes)((Ints)choose(magnitude >= 0x7c00, (Lanes)special, (Lanes)found) | (half & 0x8000) << 16);
#endif
}

static const float NIBBLES[4][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
    {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7},
    {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113}, /* IQ4_NL */
    {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12},                  /* MXFP4 */
};

/* What the lowest four bits of each lane stand for. */
static inline __attribute__((always_inline)) Lanes nibble(Ints index, const int storage) {
    const float *table = NIBBLES[storage == IQ4_NL ? 2 : storage == MXFP4 ? 3 : storage == Q4_0];
#if LANES == 16 && defined(__AVX512F__)
    return (Lanes)_mm512_permutexvar_ps((__m512i)index, (__m512)load(table));
#else
    if (storage != IQ4_NL && storage != MXFP4) return as_float((index & 15) - (storage == Q4_0 ? 8 : 0));
#if LANES == 8 && defined(__AVX2__)
    __m256 low = _mm256_permutevar8x32_ps((__m256)load(table), (__m256i)index);
    __m256 high = _mm256_permutevar8x32_ps((__m256)load(table + 8), (__m256i)index);
    return (Lanes)_mm256_blendv_ps(low, high, (__m256)(index << 28));
#else
    Lanes found;
    for (int lane = 0; lane < LANES; lane++) found[lane] = table[index[lane] & 15];
    return found;
#endif
#endif
}

/* A run of one vector's outputs out of a record: out (RUN, PANEL). Each weight is rounded as the format's reference
   rounds it: once, where something is added; up to there all products are exact. */
static inline __attribute__((always_inline)) void take_apart(const uint8_t *record, int32_t run, float *out,
                                                             const int storage) {
    const Record sizes = record_of(storage);
    const int is_k = storage == Q4_K || storage == Q5_K || storage == Q6_K;
    const int has_offset = storage == Q4_1 || storage == Q5_1 || storage == Q4_K || storage == Q5_K;
    const int highs = storage == Q5_0 || storage == Q5_1 ? 1 : storage == Q5_K ? 8 : storage == Q6_K ? 16 : 0;
    const uint8_t *numbers = record + sizes.scales;
#pragma GCC unroll 1
    for (int at = 0; at < PANEL; at += LANES) {
        const uint8_t *scale = record + 2 * at, *fine = record + (storage == Q6_K ? 2 : 4) * PANEL + at;
        Lanes factor[2], offset = all(0.0f);
        if (storage == MXFP4) { /* 2^(e - 128) in two normal factors */
            Ints exponent = bytes(record + at);
            factor[0] = (Lanes)(((exponent >> 1) + (127 - 64)) << 23);
            factor[1] = (Lanes)((exponent - (exponent >> 1) + (127 - 64)) << 23);
        } else factor[0] = factor[1] = from_float16(scale);
        if (storage == Q4_1 || storage == Q5_1) offset = from_float16(scale + 2 * PANEL);
        if (storage == Q4_K || storage == Q5_K) {
            offset = -(from_float16(scale + 2 * PANEL) * as_float(bytes(fine + (8 + run) * PANEL)));
            factor[0] = factor[1] = factor[0] * as_float(bytes(fine + run * PANEL));
        }
        if (storage == Q6_K) {
            factor[1] *= as_float(signed_bytes(fine + (2 * run + 1) * PANEL));
            factor[0] *= as_float(signed_bytes(fine + 2 * run * PANEL));
        }
#pragma GCC unroll 8
        for (int group = 0; group < 8; group++) { /* four inputs each: a byte of a word */
            const int half = group / 4;
            Ints low = {0}, high = {0};
            if (storage == Q4_K || storage == Q5_K) {
                low = ints(numbers + 4 * ((highs + run / 2 * 8 + group) * PANEL + at)) >> 4 * (run % 2);
                if (storage == Q5_K) high = ints(numbers + 4 * (group * PANEL + at)) >> run << 4;
            } else if (storage == Q6_K) {
                low = ints(numbers + 4 * ((highs + run / 4 * 16 + run % 2 * 8 + group) * PANEL + at)) >> run % 4 / 2 * 4;
                high = ints(numbers + 4 * ((run / 4 * 8 + group) * PANEL + at)) >> run % 4 * 2 << 4;
            } else if (storage != Q8_0) {
                low = ints(numbers + 4 * ((highs + group % 4) * PANEL + at)) >> 4 * half;
                if (highs) high = ints(numbers + 4 * at);
            }
#pragma GCC unroll 4
            for (int byte = 0; byte < 4; byte++) {
                const int input = 4 * group + byte;
                Lanes value;
                if (storage == Q8_0) value = as_float(signed_bytes(numbers + input * PANEL + at));
                else if (!highs) value = nibble(low >> 8 * byte, storage);
                else {
                    Ints upper = is_k ? high >> 8 * byte : input < 4 ? high << (4 - input) : high >> (input - 4);
                    Ints both = (low >> 8 * byte & 15) | (upper & (storage == Q6_K ? 48 : 16));
                    value = as_float(both - (storage == Q6_K ? 32 : storage == Q5_0 ? 16 : 0));
                }
                value *= factor[storage == MXFP4 ? 0 : half];
                if (storage == MXFP4) value *= factor[1];
                if (has_offset) value += offset;
                store(out + input * PANEL + at, value);
            }
        }
    }
}

/* One input's weights of a panel. */
static inline __attribute__((always_inline)) void widen(const uint8_t *record, float *out, const int storage) {
    for (int at = 0; at < PANEL; at += LANES) {
        if (storage == INT8) store(out + at, as_float(signed_bytes(record + at)));
        if (storage == F16) store(out + at, from_float16(record + 2 * at));
        if (storage == BFLOAT16) store(out + at, (Lanes)(halves(record + 2 * at) << 16));
    }
}

#define EACH_RUN(storage)                                                                                   \
    case storage:                                                                                           \
        for (int32_t input = first; input < first + inputs; input += RUN)                                   \
            take_apart(panel + (int64_t)(input / record.inputs) * record.bytes, input % record.inputs / RUN, \
                       room + (input - first) * PANEL, storage);                                            \
        return room;
#define EACH_INPUT(storage)                                                                                 \
    case storage:                                                                                           \
        for (int32_t input = first; input < first + inputs; input++)                                        \
            widen(panel + (int64_t)input * record.bytes, room + (input - first) * PANEL, storage);          \
        return room;

/* So many inputs of a panel in float32 (inputs, PANEL): where they lie, or in the room for them. first is a multiple
   of RUN. */
static const float *in_float32(const uint8_t *panel, int32_t first, int32_t inputs, int32_t storage, float *room) {
    const Record record = record_of(storage);
    switch (storage) {
    default: return (const float *)panel + (int64_t)first * PANEL;
    EACH_INPUT(BFLOAT16) EACH_INPUT(INT8) EACH_INPUT(F16)
    EACH_RUN(Q8_0) EACH_RUN(Q4_0) EACH_RUN(Q4_1) EACH_RUN(Q5_0) EACH_RUN(Q5_1)
    EACH_RUN(Q4_K) EACH_RUN(Q5_K) EACH_RUN(Q6_K) EACH_RUN(IQ4_NL) EACH_RUN(MXFP4)
    }
}
