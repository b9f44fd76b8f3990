/* Products of a few rows with weights that are stored in panels. */

#pragma once

#include <string.h>

#include "integers.h"
#include "stages.h"

#if defined(__AVX512F__) || defined(__aarch64__)
#define TILE 6 /* rows of inputs computed together: enough sums to hide latencies, and no more than registers hold */
#else
#define TILE 3
#endif
#define STRETCH (2 * RUN) /* inputs that are multiplied for every row before the next: they stay in the L1 cache */
#define MOST_ROWS 128     /* rows whose sums are kept during one pass over a panel */

/* sums[row] += x[row] @ weights (inputs, PANEL). Meanwhile one byte in every `stride` of `ahead` is prefetched. rows is a
   constant wherever this is inlined. */
static inline __attribute__((always_inline)) void multiply(const float *weights, const float *x, int64_t row_size,
                                                           int32_t inputs, const char *ahead, int32_t stride,
                                                           const int rows, Lanes sums[TILE][WIDE]) {
    Lanes total[TILE][WIDE];
    for (int row = 0; row < rows; row++)
        for (int at = 0; at < WIDE; at++) total[row][at] = sums[row][at];
    for (int64_t input = 0; input < inputs; input++, weights += PANEL, ahead += stride) {
        Lanes weight[WIDE]; /* volatile, so that weights are loaded once and not again for every row */
        for (int at = 0; at < WIDE; at++) weight[at] = (Lanes)*(const volatile Ints *)(weights + at * LANES);
        __builtin_prefetch(ahead, 0, 1);
#pragma GCC unroll 6
        for (int row = 0; row < rows; row++) {
            Lanes value = all(x[row * row_size + input]);
            for (int at = 0; at < WIDE; at++) total[row][at] += value * weight[at];
        }
    }
    for (int row = 0; row < rows; row++)
        for (int at = 0; at < WIDE; at++) sums[row][at] = total[row][at];
}

#define MULTIPLY(rows) multiply(weights, x, row_size, inputs, ahead, stride, rows, sums)
static void multiply_tile(const float *weights, const float *x, int64_t row_size, int32_t inputs, const char *ahead,
                          int32_t stride, int32_t rows, Lanes sums[TILE][WIDE]) {
    switch (rows) {
    case 1: MULTIPLY(1); break;
    case 2: MULTIPLY(2); break;
#if TILE > 3
    case 3: MULTIPLY(3); break;
    case 4: MULTIPLY(4); break;
    case 5: MULTIPLY(5); break;
#endif
    default: MULTIPLY(TILE);
    }
}

static inline int64_t panel_bytes(const Part *part, int64_t inputs) {
    const Record record = record_of(part->storage);
    return whole(inputs, record.inputs) / record.inputs * record.bytes;
}

/* A product's rows of inputs: in float32, and also rounded where a part of the product needs that. */
typedef struct {
    const float *x; /* (rows, inputs) */
    Rounded rounded;
} Inputs;

/* sums (rows, PANEL) = `rows` rows of the inputs, from `row` on, @ one panel. */
static void panel_sums(const Part *part, int32_t panel, const Inputs *given, int64_t row, int32_t inputs, int32_t rows,
                       Lanes (*sums)[WIDE]) {
    const int32_t tiles = (rows + TILE - 1) / TILE, tile = (rows + tiles - 1) / tiles;
    const int64_t bytes = panel_bytes(part, inputs);
    const uint8_t *weight = (const uint8_t *)part->weight + panel * bytes;
    if (is_rounded(part->storage)) {
        rounded_sums(weight, part->storage, &given->rounded, row, rows, sums);
        return;
    }
    const float *x = given->x + row * inputs;
    const int32_t stride = bytes / inputs / tiles;
    memset(sums, 0, rows * sizeof(sums[0]));
    if (multiply_directly(weight, inputs, part->storage, x, rows, sums)) return;
    _Alignas(64) float room[STRETCH * PANEL];
    for (int32_t input = 0; input < inputs; input += STRETCH) {
        const int32_t some = smaller(STRETCH, inputs - input);
        const char *ahead = (const char *)weight + bytes * input / inputs + AHEAD;
        const float *weights = in_float32(weight, input, some, part->storage, room);
        for (int32_t at = 0; at < tiles; at++)
            multiply_tile(weights, x + (int64_t)at * tile * inputs + input, inputs, some, ahead + at * stride * some, stride,
                          smaller(tile, rows - at * tile), sums + at * tile);
    }
}

static inline Lanes finish(const Part *part, int32_t panel, int32_t at, Lanes value) {
    if (part->bias.at) value += load(part->bias.at + panel * PANEL + at * LANES);
    return value;
}

/* The inputs for a product's panels, rounded into the thread's own memory where that is needed. Each thread rounds all
   of them. That is cheaper than sharing the work and waiting for other threads. */
static Inputs inputs_of(const Product *p, const float *x, int32_t rows, float *own) {
    Inputs given = {x, rounded_in(own, rows, p->inputs)};
    int asked = 0;
    for (int part = 0; part < PARTS; part++) asked |= is_rounded(p->parts[part].storage);
    for (int32_t row = 0; asked && row < rows; row++) round_row(x + (int64_t)row * p->inputs, p->inputs, &given.rounded, row);
    return given;
}

/* How many panels of outputs are to be computed: those of all parts, or, for a gated product, those of the gates. */
static int32_t panels_of(const Product *p, int32_t gated) {
    int32_t panels = 0;
    for (int part = 0; part < (gated ? 1 : PARTS); part++) panels += whole(p->parts[part].outputs, PANEL) / PANEL;
    return panels;
}

/* One panel of out (rows, outputs) = activation(x @ weight.T + bias) + residual. It is stored if it may be published.
   gated: out (rows, outputs / 2) = activation(gate) * value; the gates are the first part, the values the second. */
static void product(Share *share, const Product *p, int32_t panel, const Inputs *x, float *out, const float *residual,
                    int32_t rows, int32_t activation, int32_t gated) {
    const Part *part = p->parts;
    int32_t before = 0;
    for (; panel * (int64_t)PANEL >= part->outputs; part++) {
        panel -= whole(part->outputs, PANEL) / PANEL;
        before += part->outputs;
    }
    const int32_t width = gated ? part->outputs : p->outputs, kept = smaller(PANEL, part->outputs - panel * PANEL);
    Lanes sums[MOST_ROWS][WIDE], opened[MOST_ROWS][WIDE];
    for (int32_t first = 0; first < rows; first += MOST_ROWS) {
        int32_t some = smaller(MOST_ROWS, rows - first);
        panel_sums(part, panel, x, first, p->inputs, some, sums);
        if (gated) panel_sums(part + 1, panel, x, first, p->inputs, some, opened);
        for (int32_t row = 0; row < some; row++)
            for (int32_t at = 0; at < WIDE; at++) {
                sums[row][at] = activate(finish(part, panel, at, sums[row][at]), activation);
                if (gated) sums[row][at] *= finish(part + 1, panel, at, opened[row][at]);
            }
        if (!first && !publish(share)) return;
        for (int32_t row = 0; row < some; row++) {
            float result[PANEL];
            for (int32_t at = 0; at < WIDE; at++) store(result + at * LANES, sums[row][at]);
            int64_t place = (int64_t)(first + row) * width + before + panel * PANEL;
            for (int32_t lane = 0; lane < kept; lane++)
                out[place + lane] = residual ? residual[place + lane] + result[lane] : result[lane];
        }
    }
}

/* One output's weights, which are a token's embedding, from its panel. The product has one part. */
static void unpack(const Product *p, int64_t output, float *out) {
    const Part *part = p->parts;
    const Record record = record_of(part->storage);
    const uint8_t *panel = (const uint8_t *)part->weight + output / PANEL * panel_bytes(part, p->inputs);
    const int32_t place = output % PANEL, lane = place % LANES;
    _Alignas(64) float room[STRETCH * PANEL];
    if (is_rounded(part->storage)) {
        unpack_rounded(panel, part->storage, place, p->inputs, out);
        return;
    }
    if (record.inputs == 1 && part->storage != FLOAT32) {
        for (int64_t input = 0; input < p->inputs; input++)
            out[input] = of_row(panel + input * record.bytes, place - lane, part->storage)[lane];
        return;
    }
    for (int32_t first = 0; first < p->inputs; first += STRETCH) {
        const int32_t some = smaller(STRETCH, p->inputs - first);
        const float *weights = in_float32(panel, first, some, part->storage, room) + place;
        for (int32_t input = 0; input < some; input++) out[first + input] = weights[(int64_t)input * PANEL];
    }
}
