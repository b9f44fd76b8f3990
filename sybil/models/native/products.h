/* Products of a few rows with weights that lie in panels. */

#pragma once

#include <string.h>

#include "lanes.h"
#include "stages.h"

#define WIDE 3               /* vectors of outputs, and */
#define TILE 3               /* rows of inputs, computed together: enough sums to hide each other's delay, in registers */
#define PANEL (WIDE * LANES) /* outputs computed together */
#define BLOCK (1 << 13)      /* bytes of weights that every row is multiplied by before the next come */
#define MOST_ROWS 128        /* whose sums are kept while a panel is gone through */

/* Weights lie as 32-bit words (outputs / PANEL, inputs / per word, PANEL): a word holds 1, 2 or 4 inputs of an output. */
static inline int32_t per_word(int32_t storage) { return storage == FLOAT32 ? 1 : storage == BFLOAT16 ? 2 : 4; }
static inline int64_t words(const Product *p) { return (p->inputs + per_word(p->storage) - 1) / per_word(p->storage); }

static inline Lanes widen(Ints word, int part, const int storage) {
    if (storage == FLOAT32) return (Lanes)word;
    if (storage == BFLOAT16) return part ? (Lanes)(word & -65536) : (Lanes)(word << 16);
    return __builtin_convertvector(word << (24 - 8 * part) >> 24, Lanes);
}

/* sums[row] += x[row] @ so many inputs of one panel, while the weights that come next are fetched: `ahead`, of which a
   word's step fetches `stride` bytes. rows and storage are constants wherever this is inlined. */
static inline __attribute__((always_inline)) void multiply(
    const int32_t *panel, const float *x, int64_t row_size, int32_t inputs, const char *ahead, int32_t stride,
    const int rows, const int storage, Lanes sums[TILE][WIDE]) {
    const int per = per_word(storage);
    Lanes total[TILE][WIDE];
    for (int row = 0; row < rows; row++)
        for (int at = 0; at < WIDE; at++) total[row][at] = sums[row][at];
    for (int64_t input = 0; input < inputs; input += per, panel += PANEL, ahead += stride) {
        Ints words[WIDE]; /* volatile: read once, and not again from the cache for every row */
        for (int at = 0; at < WIDE; at++) words[at] = *(const volatile Ints *)(panel + at * LANES);
        __builtin_prefetch(ahead, 0, 1);
#pragma GCC unroll 4
        for (int part = 0; part < per; part++) {
            if (part && input + part >= inputs) break;
            Lanes weights[WIDE];
            for (int at = 0; at < WIDE; at++) weights[at] = widen(words[at], part, storage);
#pragma GCC unroll 3
            for (int row = 0; row < rows; row++) {
                Lanes value = all(x[row * row_size + input + part]);
                for (int at = 0; at < WIDE; at++) total[row][at] += value * weights[at];
            }
        }
    }
    for (int row = 0; row < rows; row++)
        for (int at = 0; at < WIDE; at++) sums[row][at] = total[row][at];
}

#define MULTIPLY(rows, storage) multiply(panel, x, row_size, inputs, ahead, stride, rows, storage, sums)
static void multiply_tile(const int32_t *panel, const float *x, int64_t row_size, int32_t inputs, const char *ahead,
                          int32_t stride, int32_t rows, int32_t storage, Lanes sums[TILE][WIDE]) {
    switch (TILE * storage + rows) {
    case 1: MULTIPLY(1, FLOAT32); break;
    case 2: MULTIPLY(2, FLOAT32); break;
    case 3: MULTIPLY(3, FLOAT32); break;
    case 4: MULTIPLY(1, BFLOAT16); break;
    case 5: MULTIPLY(2, BFLOAT16); break;
    case 6: MULTIPLY(3, BFLOAT16); break;
    case 7: MULTIPLY(1, INT8); break;
    case 8: MULTIPLY(2, INT8); break;
    default: MULTIPLY(3, INT8);
    }
}

/* sums (rows) = x @ one panel. */
static void panel_sums(const Product *p, int32_t panel, const float *x, int32_t rows, Lanes (*sums)[WIDE]) {
    const int32_t per = per_word(p->storage), most = BLOCK / (4 * PANEL) * per;
    const int32_t tiles = (rows + TILE - 1) / TILE, tile = (rows + tiles - 1) / tiles;
    const int32_t *weight = (const int32_t *)p->weight + panel * words(p) * PANEL;
    memset(sums, 0, rows * sizeof(sums[0]));
    for (int32_t input = 0; input < p->inputs; input += most) {
        int32_t inputs = smaller(most, p->inputs - input), size = (inputs + per - 1) / per * PANEL;
        for (int32_t at = 0; at < tiles; at++)
            multiply_tile(weight, x + (int64_t)at * tile * p->inputs + input, p->inputs, inputs,
                          (const char *)(weight + size) + (int64_t)4 * size * at / tiles, 4 * PANEL / tiles,
                          smaller(tile, rows - at * tile), p->storage, sums + at * tile);
        weight += size;
    }
}

static inline Lanes finish(const Product *p, int32_t panel, int32_t at, Lanes value) {
    if (p->scale.at) value *= load(p->scale.at + panel * PANEL + at * LANES);
    if (p->bias.at) value += load(p->bias.at + panel * PANEL + at * LANES);
    return value;
}

/* out (rows, outputs) = activation(x @ weight.T + bias) + residual, one panel of it, stored if it may be published.
   gated: a panel of gates lies before each one of what they open; out (rows, outputs / 2) = activation(gate) * value. */
static void product(Share *share, const Product *p, int32_t panel, const float *x, float *out, const float *residual, int32_t rows,
                    int32_t activation, int32_t gated) {
    const int32_t width = gated ? p->outputs / 2 : p->outputs, kept = smaller(PANEL, width - panel * PANEL);
    const int32_t which = gated ? 2 * panel : panel;
    Lanes sums[MOST_ROWS][WIDE], opened[MOST_ROWS][WIDE];
    for (int32_t first = 0; first < rows; first += MOST_ROWS) {
        int32_t some = smaller(MOST_ROWS, rows - first);
        panel_sums(p, which, x + (int64_t)first * p->inputs, some, sums);
        if (gated) panel_sums(p, which + 1, x + (int64_t)first * p->inputs, some, opened);
        for (int32_t row = 0; row < some; row++)
            for (int32_t at = 0; at < WIDE; at++) {
                sums[row][at] = activate(finish(p, which, at, sums[row][at]), activation);
                if (gated) sums[row][at] *= finish(p, which + 1, at, opened[row][at]);
            }
        if (!first && !publish(share)) return;
        for (int32_t row = 0; row < some; row++) {
            float result[PANEL];
            for (int32_t at = 0; at < WIDE; at++) store(result + at * LANES, sums[row][at]);
            int64_t place = (int64_t)(first + row) * width + panel * PANEL;
            for (int32_t lane = 0; lane < kept; lane++)
                out[place + lane] = residual ? residual[place + lane] + result[lane] : result[lane];
        }
    }
}

/* One output's weights: a token's embedding, taken out of the panels. */
static void unpack(const Product *p, int64_t output, float *out) {
    const int32_t per = per_word(p->storage);
    const int32_t *word = (const int32_t *)p->weight + output / PANEL * words(p) * PANEL + output % PANEL;
    for (int32_t input = 0; input < p->inputs; input++) {
        Ints lanes = {word[(int64_t)(input / per) * PANEL]};
        out[input] = widen(lanes, input % per, p->storage)[0] * (p->scale.at ? p->scale.at[output] : 1.0f);
    }
}
