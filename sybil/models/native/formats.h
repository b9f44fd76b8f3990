/* How a weight is arranged in memory, and how it becomes float32.

   A weight is divided into panels of PANEL outputs, and a panel into records of some inputs. A record has first the
   scales of all its outputs, padded to a whole vector, and then their numbers. Each kind of number is a row of PANEL, so
   that a vector holds the same number of LANES outputs. Four bytes of a file's block are one word here, unchanged. */

#pragma once

#include "lanes.h"

#if defined(__AVX2__) || defined(__F16C__)
#include <immintrin.h>
#endif

#define WIDE 3               /* vectors of outputs computed together: */
#define PANEL (WIDE * LANES) /* so many outputs */
#define RUN 32               /* inputs taken to float32 together */
#define DIRECT 3             /* for up to so many rows, weights that are quick to convert stay in registers */
#define AHEAD (1 << 13)      /* bytes: how far ahead memory is prefetched */

typedef struct { /* the record of a panel; bytes: scales included */
    int32_t inputs, scales, bytes;
} Record;

static inline Record record_of(int32_t storage) {
    static const struct { int32_t inputs, scales, numbers; } output[STORAGES] = { /* bytes of one output */
        [FLOAT32] = {1, 0, 4},    [BFLOAT16] = {1, 0, 2},   [F16] = {1, 0, 2},
        [Q8_0] = {32, 2, 32},     [Q4_0] = {32, 2, 16},     [Q4_1] = {32, 4, 16},    [Q5_0] = {32, 2, 20},
        [Q5_1] = {32, 4, 20},     [Q4_K] = {256, 20, 128},  [Q5_K] = {256, 20, 160}, [Q6_K] = {256, 18, 192},
        [IQ4_NL] = {32, 2, 16},   [MXFP4] = {32, 1, 16},    [R4] = {32, 4, 16},      [R5] = {32, 4, 20},
        [R6] = {32, 4, 24},       [R8] = {32, 4, 32},
    };
    const int32_t scales = whole(output[storage].scales * PANEL, 4 * LANES);
    return (Record){output[storage].inputs, scales, scales + output[storage].numbers * PANEL};
}

static inline Ints ints(const void *from) { return *(const Ints *)from; }

/* LANES small integers from memory as Ints. Compilers find the instruction by themselves for 4 lanes only. */
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

/* float16 to float32, exactly. No step makes a denormal float32, which a processor may be set to treat as zero. */
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

static const float COUNTED[] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                                16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31};
static const float LESS_8[] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
static const float LESS_16[] = {-16, -15, -14, -13, -12, -11, -10, -9, -8, -7, -6, -5, -4, -3, -2, -1,
                                0,   1,   2,   3,   4,   5,   6,   7,  8,  9,  10, 11, 12, 13, 14, 15};
static const float OF_IQ4_NL[] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
static const float OF_MXFP4[] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

/* The numbers that the lowest four bits of each lane stand for. */
static inline __attribute__((always_inline)) Lanes of_four_bits(Ints bits, const int storage) {
    const float *table = storage == IQ4_NL ? OF_IQ4_NL : storage == MXFP4 ? OF_MXFP4 : storage == Q4_0 ? LESS_8 : COUNTED;
#if LANES == 16 && defined(__AVX512F__)
    return (Lanes)_mm512_permutexvar_ps((__m512i)bits, (__m512)load(table));
#else
    if (storage != IQ4_NL && storage != MXFP4) return as_float((bits & 15) - (storage == Q4_0 ? 8 : 0));
#if LANES == 8 && defined(__AVX2__)
    __m256 low = _mm256_permutevar8x32_ps((__m256)load(table), (__m256i)bits);
    __m256 high = _mm256_permutevar8x32_ps((__m256)load(table + 8), (__m256i)bits);
    return (Lanes)_mm256_blendv_ps(low, high, (__m256)(bits << 28));
#else
    Lanes found;
    for (int lane = 0; lane < LANES; lane++) found[lane] = table[bits[lane] & 15];
    return found;
#endif
#endif
}

/* The numbers that the lowest five bits of each lane stand for. */
static inline __attribute__((always_inline)) Lanes of_five_bits(Ints bits, const int storage) {
#if LANES == 16 && defined(__AVX512F__)
    const float *table = storage == Q5_0 ? LESS_16 : COUNTED;
    return (Lanes)_mm512_permutex2var_ps((__m512)load(table), (__m512i)bits, (__m512)load(table + 16));
#else
    return as_float((bits & 31) - (storage == Q5_0 ? 16 : 0));
#endif
}

/* A weight is number * factor + offset in float32, rounded as the format's reference rounds it: once, where the offset is
   added, because all products before that are exact. A run has a factor for each half. MXFP4's factor is a product of
   two factors, neither of which is denormal. */
typedef struct {
    Lanes factor[2], offset;
} Scales;

static inline __attribute__((always_inline)) Scales scales_of(const uint8_t *record, int32_t run, int at, const int storage) {
    const uint8_t *first = record + 2 * at, *second = first + 2 * PANEL; /* float16 numbers; behind them a byte each: */
    const uint8_t *fine = record + (storage == Q6_K ? 2 : 4) * PANEL + at;
    if (storage == MXFP4) { /* 2^(e - 128) */
        Ints exponent = bytes(record + at), half = exponent >> 1;
        return (Scales){{(Lanes)((half + 63) << 23), (Lanes)((exponent - half + 63) << 23)}, all(0.0f)};
    }
    const Lanes factor = from_float16(first);
    Scales scales = {{factor, factor}, all(0.0f)};
    if (storage == Q4_1 || storage == Q5_1) scales.offset = from_float16(second);
    if (storage == Q4_K || storage == Q5_K) {
        scales.factor[0] = scales.factor[1] = factor * as_float(bytes(fine + run * PANEL));
        scales.offset = -(from_float16(second) * as_float(bytes(fine + (8 + run) * PANEL)));
    }
    if (storage == Q6_K)
        for (int half = 0; half < 2; half++)
            scales.factor[half] = factor * as_float(signed_bytes(fine + (2 * run + half) * PANEL));
    return scales;
}

/* Four inputs of a run, each in the lowest bits of one byte of a word. The fifth bits of Q5_0 and Q5_1 are in `fifth`. */
typedef struct {
    Ints word, fifth;
} Four;

static inline __attribute__((always_inline)) Four four_of(const uint8_t *numbers, int32_t run, int group, int at,
                                                          const int storage) {
    const uint8_t *words = numbers + 4 * at;
    const int row = 4 * PANEL; /* bytes of one word of every output */
    if (storage == Q4_K) return (Four){ints(words + (run / 2 * 8 + group) * row) >> 4 * (run % 2), {0}};
    if (storage == Q5_K) {
        Ints low = ints(words + (8 + run / 2 * 8 + group) * row) >> 4 * (run % 2), high = ints(words + group * row) >> run;
        return (Four){(low & 0x0f0f0f0f) | (high << 4 & 0x10101010), {0}};
    }
    if (storage == Q6_K) {
        Ints low = ints(words + (16 + run / 4 * 16 + run % 2 * 8 + group) * row) >> run % 4 / 2 * 4;
        Ints high = ints(words + (run / 4 * 8 + group) * row) >> run % 4 * 2;
        return (Four){(low & 0x0f0f0f0f) | (high << 4 & 0x30303030), {0}};
    }
    const int has_fifth = storage == Q5_0 || storage == Q5_1;
    if (storage == Q8_0) return (Four){{0}, {0}}; /* its inputs are rows of bytes */
    Ints word = ints(words + (has_fifth + group % 4) * row) >> group / 4 * 4;
    return (Four){word, has_fifth ? ints(words) : word};
}

static inline __attribute__((always_inline)) Lanes weight_of(const uint8_t *numbers, Four four, const Scales *scales,
                                                             int input, int at, const int storage) {
    const Ints bits = four.word >> input % 4 * 8;
    Lanes weight;
    if (storage == Q8_0) weight = as_float(signed_bytes(numbers + input * PANEL + at));
    else if (storage == Q6_K) weight = as_float((bits & 63) - 32);
    else if (storage == Q5_K) weight = of_five_bits(bits, storage);
    else if (storage == Q5_0 || storage == Q5_1) {
        Ints fifth = input < 4 ? four.fifth << (4 - input) : four.fifth >> (input - 4);
        weight = of_five_bits((Ints)choose((Ints){0} + 15, (Lanes)bits, (Lanes)fifth), storage);
    } else weight = of_four_bits(bits, storage);
    weight *= scales->factor[storage == MXFP4 ? 0 : input / 16];
    if (storage == MXFP4) weight *= scales->factor[1];
    if (storage == Q4_1 || storage == Q5_1 || storage == Q4_K || storage == Q5_K) weight += scales->offset;
    return weight;
}

/* Prefetches a part of the run that is AHEAD bytes later. */
static inline __attribute__((always_inline)) void fetch(const uint8_t *record, int32_t run, int group, const int storage) {
    const int runs = record_of(storage).inputs / RUN, bytes = record_of(storage).bytes / runs / 8;
    const uint8_t *from = record + (run * 8 + group) * bytes + AHEAD;
    for (int at = 0; at < bytes; at += 64) __builtin_prefetch(from + at, 0, 1);
}

/* Converts a run of a record into out (RUN, PANEL). Where out is NULL, it computes sums += x (RUN) @ run instead. */
static inline __attribute__((always_inline)) void take_apart(const uint8_t *record, int32_t run, float *out,
                                                             const float *x, Lanes sums[WIDE], const int storage) {
    const uint8_t *numbers = record + record_of(storage).scales;
    Scales scales[WIDE];
    Lanes total[WIDE];
    for (int at = 0; at < WIDE; at++) scales[at] = scales_of(record, run, at * LANES, storage);
    for (int at = 0; at < WIDE; at++) total[at] = out ? all(0.0f) : sums[at];
#pragma GCC unroll 8
    for (int group = 0; group < 8; group++) {
        if (!out) fetch(record, run, group, storage);
        Four four[WIDE];
        for (int at = 0; at < WIDE; at++) four[at] = four_of(numbers, run, group, at * LANES, storage);
#pragma GCC unroll 4
        for (int input = 4 * group; input < 4 * group + 4; input++)
#pragma GCC unroll 3
            for (int at = 0; at < WIDE; at++) {
                Lanes weight = weight_of(numbers, four[at], &scales[at], input, at * LANES, storage);
                if (out) store(out + input * PANEL + at * LANES, weight);
                else total[at] += all(x[input]) * weight;
            }
    }
    if (!out)
        for (int at = 0; at < WIDE; at++) sums[at] = total[at];
}

/* The weights of one input for a vector of outputs, from `output` on. */
static inline Lanes of_row(const uint8_t *row, int output, const int storage) {
    if (storage == F16) return from_float16(row + 2 * output);
    return (Lanes)(halves(row + 2 * output) << 16);
}

/* Converts `inputs` inputs of a panel to float32: out (inputs, PANEL). */
static inline __attribute__((always_inline)) void widen(const uint8_t *row, int32_t inputs, float *out, const int storage) {
    for (int32_t input = 0; input < inputs; input++, row += record_of(storage).bytes)
        for (int at = 0; at < WIDE; at++) store(out + input * PANEL + at * LANES, of_row(row, at * LANES, storage));
}

/* sums[row] += x[row] @ `inputs` inputs of a panel. rows is a constant wherever this is inlined. */
static inline __attribute__((always_inline)) void multiply_widened(const uint8_t *panel, int32_t inputs, const float *x,
                                                                   int64_t row_size, const int rows, Lanes (*sums)[WIDE],
                                                                   const int storage) {
    Lanes total[DIRECT][WIDE];
    for (int row = 0; row < rows; row++)
        for (int at = 0; at < WIDE; at++) total[row][at] = sums[row][at];
    for (int64_t input = 0; input < inputs; input++, panel += record_of(storage).bytes) {
        Lanes weight[WIDE];
        for (int at = 0; at < WIDE; at++) weight[at] = of_row(panel, at * LANES, storage);
        __builtin_prefetch(panel + AHEAD, 0, 1);
#pragma GCC unroll 3
        for (int row = 0; row < rows; row++) {
            Lanes value = all(x[row * row_size + input]);
            for (int at = 0; at < WIDE; at++) total[row][at] += value * weight[at];
        }
    }
    for (int row = 0; row < rows; row++)
        for (int at = 0; at < WIDE; at++) sums[row][at] = total[row][at];
}

#define EACH_RUN(storage, out, x)                                                                                      \
    for (int32_t input = 0; input < inputs; input += RUN)                                                              \
        take_apart(panel + (int64_t)((first + input) / record.inputs) * record.bytes,                                  \
                   (first + input) % record.inputs / RUN, out, x, sums, storage);
#define BLOCKS(CASE)                                                                                                   \
    CASE(Q8_0) CASE(Q4_0) CASE(Q4_1) CASE(Q5_0) CASE(Q5_1) CASE(Q4_K) CASE(Q5_K) CASE(Q6_K) CASE(IQ4_NL) CASE(MXFP4)

/* The inputs of a panel from `first` on, in float32 (inputs, PANEL): the panel's own memory where it is float32, or else
   `room`, into which they are converted. first is a multiple of RUN. */
static const float *in_float32(const uint8_t *panel, int32_t first, int32_t inputs, int32_t storage, float *room) {
    const Record record = record_of(storage);
    Lanes *const sums = NULL;
#define WIDENED_ROWS(storage) case storage: widen(panel + (int64_t)first * record.bytes, inputs, room, storage); break;
#define TAKEN_APART(storage) case storage: EACH_RUN(storage, room + input * PANEL, NULL) break;
    switch (storage) {
    default: return (const float *)panel + (int64_t)first * PANEL;
    WIDENED_ROWS(BFLOAT16) WIDENED_ROWS(F16)
    BLOCKS(TAKEN_APART)
    }
    return room;
}

/* sums (rows, WIDE) += x (rows, inputs) @ a panel that isn't in float32, for a few rows; converted weights stay in
   registers. Returns 0, with nothing done, where there are too many rows for that. */
static int multiply_directly(const uint8_t *panel, int32_t inputs, int32_t storage, const float *x, int32_t rows,
                             Lanes (*all_sums)[WIDE]) {
    const Record record = record_of(storage);
    const int32_t first = 0;
    Lanes *const sums = all_sums[0];
#define OF_ROWS(storage)                                                                                               \
    case DIRECT * storage + 1: multiply_widened(panel, inputs, x, inputs, 1, all_sums, storage); return 1;             \
    case DIRECT * storage + 2: multiply_widened(panel, inputs, x, inputs, 2, all_sums, storage); return 1;             \
    case DIRECT * storage + 3: multiply_widened(panel, inputs, x, inputs, 3, all_sums, storage); return 1;
#define OF_ONE_ROW(storage) case DIRECT * storage + 1: EACH_RUN(storage, NULL, x + input) return 1;
    switch (rows > DIRECT ? 0 : DIRECT * storage + rows) {
    OF_ROWS(BFLOAT16) OF_ROWS(F16)
    BLOCKS(OF_ONE_ROW)
    default: return 0;
    }
}
