/* The decoder-only forward of transformer.py on a CPU, in one call: see native.py.

   Every sum below is taken in one fixed order, which depends on nothing but the row's own numbers: not on how
   many rows are computed together, nor where a token stands among them, nor on threads or the cache's capacity.
   So a token's logits have the same bits whatever is verified beside it.

   Rows: the batch * count tokens of a call. Everything computed is float32, whatever the weights are stored in. */

#include <math.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#ifndef LANES
#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8
#endif
#endif
#define WIDE 3               /* vectors of outputs, and */
#define TILE 3               /* rows of inputs, computed together: enough sums to hide each other's delay, in registers */
#define PANEL (WIDE * LANES) /* outputs computed together */
#ifndef BLOCK
#define BLOCK (1 << 14)      /* bytes of weights that every row is multiplied by before the next come */
#endif
#define MOST_ROWS 128        /* whose sums are kept while a panel is gone through */

typedef float Lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

enum { FLOAT32, BFLOAT16, INT8 };
enum { NONE, GELU_TANH, GELU, RELU, SILU };
enum { LAYER, RMS };

typedef struct { /* x @ weight.T * scale + bias; scale and bias may be NULL, and are padded to whole panels */
    const void *weight;
    const float *scale, *bias;
    int32_t inputs, outputs, storage;
} Product;

typedef struct {
    const float *weight, *bias; /* NULL: there is none */
} Norm;

typedef struct {
    Norm attention_norm, mlp_norm, query_norm, key_norm;
    Product query_key_value, attention_out, mlp_in, mlp_out;
} Block;

typedef struct {
    int32_t vocab_size, context, layers, heads, kv_heads, head_size, width, inner;
    int32_t activation, gated, norm, post_norm, parallel, window, rotary_size, position_offset;
    float epsilon, attention_scale;
    const Block *blocks;
    Norm final_norm;
    Product token_embedding, head, project_in, project_out; /* the last two: weight NULL where there is none */
    const float *positions;      /* (context + offset, embedding width) or NULL */
    const float *cosines, *sines; /* (context, rotary_size / 2) or NULL */
} Model;

typedef struct { /* (layers, batch, kv_heads, capacity, head stride) each; head stride: head size in whole lanes */
    float *keys, *values;
    int32_t batch, capacity;
} Cache;

int32_t sybil_panel(void) { return PANEL; }
int32_t sybil_lanes(void) { return LANES; }

static inline int32_t whole(int32_t count, int32_t unit) { return (count + unit - 1) / unit * unit; }
static inline int32_t smaller(int32_t a, int32_t b) { return a < b ? a : b; }
static inline Lanes load(const float *from) { return *(const Lanes *)from; }
static inline void store(float *to, Lanes lanes) { *(Lanes *)to = lanes; }
static inline Lanes all(float value) { return value - (Lanes){0}; } /* - 0: what a compiler may leave out */
static inline float sum(Lanes lanes) {
    float half[LANES];
    store(half, lanes);
    for (int width = LANES / 2; width; width /= 2)
        for (int lane = 0; lane < width; lane++) half[lane] += half[lane + width];
    return half[0];
}

/* ---- functions of a vector ---- */

static inline Lanes choose(Ints mask, Lanes yes, Lanes no) { return (Lanes)((mask & (Ints)yes) | (~mask & (Ints)no)); }

/* e^x = 2^n * e^r, |r| <= ln(2) / 2, e^r by its Taylor series to r^7 (relative error below 2e-7). */
static inline Lanes exponential(Lanes x) {
    x = choose(x < all(-87.0f), all(-87.0f), x);
    x = choose(x > all(88.0f), all(88.0f), x);
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
    return (Lanes)((Ints)series + (((Ints)shifted - (Ints)all(12582912.0f)) << 23));
}

static inline Lanes activate(Lanes x, int32_t activation) {
    if (activation == RELU) return choose(x > all(0.0f), x, all(0.0f));
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

/* ---- products ---- */

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
        Ints words[WIDE];
        for (int at = 0; at < WIDE; at++) words[at] = *(const volatile Ints *)(panel + at * LANES);
        __builtin_prefetch(ahead);
#pragma GCC unroll 4
        for (int part = 0; part < per; part++) {
            if (part && input + part >= inputs) break;
            Lanes weights[WIDE];
            for (int at = 0; at < WIDE; at++) weights[at] = widen(words[at], part, storage);
#pragma GCC unroll 4
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
        for (int32_t row = 0; row < rows; row += tile)
            multiply_tile(weight, x + (int64_t)row * p->inputs + input, p->inputs, inputs,
                          (const char *)(weight + size) + (int64_t)4 * size * row / rows, 4 * PANEL / tiles,
                          smaller(tile, rows - row), p->storage, sums + row);
        weight += size;
    }
}

static inline Lanes finish(const Product *p, int32_t panel, int32_t at, Lanes value) {
    if (p->scale) value *= load(p->scale + panel * PANEL + at * LANES);
    if (p->bias) value += load(p->bias + panel * PANEL + at * LANES);
    return value;
}

/* out (rows, outputs) = activation(x @ weight.T + bias) + residual, one panel of it.
   gated: a panel of gates lies before each one of what they open; out (rows, outputs / 2) = activation(gate) * value. */
static void product(const Product *p, int32_t panel, const float *x, float *out, const float *residual, int32_t rows,
                    int32_t activation, int32_t gated) {
    const int32_t width = gated ? p->outputs / 2 : p->outputs, kept = smaller(PANEL, width - panel * PANEL);
    const int32_t which = gated ? 2 * panel : panel;
    Lanes sums[MOST_ROWS][WIDE], opened[MOST_ROWS][WIDE];
    for (int32_t first = 0; first < rows; first += MOST_ROWS) {
        int32_t some = smaller(MOST_ROWS, rows - first);
        panel_sums(p, which, x + (int64_t)first * p->inputs, some, sums);
        if (gated) panel_sums(p, which + 1, x + (int64_t)first * p->inputs, some, opened);
        for (int32_t row = 0; row < some; row++) {
            float result[PANEL];
            for (int32_t at = 0; at < WIDE; at++) {
                Lanes value = activate(finish(p, which, at, sums[row][at]), activation);
                if (gated) value *= finish(p, which + 1, at, opened[row][at]);
                store(result + at * LANES, value);
            }
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
        out[input] = widen(lanes, input % per, p->storage)[0] * (p->scale ? p->scale[output] : 1.0f);
    }
}

/* ---- norms, rotation, attention ---- */

/* sum of (x - mean)^2, in lanes; the last, incomplete lanes are filled with the mean. */
static float squares(const float *x, int32_t size, float mean) {
    Lanes total = all(0.0f);
    int32_t at = 0;
    for (; at + LANES <= size; at += LANES) {
        Lanes value = load(x + at) - all(mean);
        total += value * value;
    }
    float rest[LANES] = {0};
    for (int32_t lane = 0; at + lane < size; lane++) rest[lane] = x[at + lane] - mean;
    return sum(total + load(rest) * load(rest));
}

static float average(const float *x, int32_t size) {
    Lanes total = all(0.0f);
    int32_t at = 0;
    for (; at + LANES <= size; at += LANES) total += load(x + at);
    float rest[LANES] = {0};
    for (int32_t lane = 0; at + lane < size; lane++) rest[lane] = x[at + lane];
    return sum(total + load(rest)) / (float)size;
}

static void normalise(const Model *m, Norm norm, const float *x, float *out, int32_t size) {
    float mean = m->norm == LAYER ? average(x, size) : 0.0f;
    float factor = 1.0f / sqrtf(squares(x, size, mean) / (float)size + m->epsilon);
    for (int32_t at = 0; at < size; at++)
        out[at] = (x[at] - mean) * factor * (norm.weight ? norm.weight[at] : 1.0f) + (norm.bias ? norm.bias[at] : 0.0f);
}

/* Halves of the first rotary_size numbers of a head, rotated against each other. */
static void rotate(const Model *m, float *head, int64_t position) {
    int32_t half = m->rotary_size / 2;
    const float *cosines = m->cosines + position * half, *sines = m->sines + position * half;
    for (int32_t at = 0; at < half; at++) {
        float first = head[at], second = head[half + at];
        head[at] = first * cosines[at] - second * sines[at];
        head[half + at] = second * cosines[at] + first * sines[at];
    }
}

/* softmax(query . keys * scale) . values over the keys from..last; out is one head of (whole lanes). */
static void attend(const float *query, const float *keys, const float *values, int32_t from, int32_t last, int32_t stride,
                   float scale, float *scores, float *out) {
    int32_t count = last - from + 1, padded = whole(count, LANES);
    keys += (int64_t)from * stride, values += (int64_t)from * stride;
    float most = -INFINITY;
    for (int32_t key = 0; key < count; key++) {
        Lanes total = all(0.0f);
        for (int32_t at = 0; at < stride; at += LANES) total += load(query + at) * load(keys + (int64_t)key * stride + at);
        scores[key] = sum(total) * scale;
        if (scores[key] > most) most = scores[key];
    }
    for (int32_t key = count; key < padded; key++) scores[key] = -INFINITY;
    Lanes total = all(0.0f);
    for (int32_t key = 0; key < padded; key += LANES) {
        Lanes score = load(scores + key);
        Lanes share = choose(score == all(-INFINITY), all(0.0f), exponential(score - all(most)));
        store(scores + key, share);
        total += share;
    }
    float inverse = 1.0f / sum(total);
    for (int32_t at = 0; at < stride; at += LANES) {
        Lanes mixed = all(0.0f);
        for (int32_t key = 0; key < count; key++) mixed += all(scores[key]) * load(values + (int64_t)key * stride + at);
        store(out + at, mixed * all(inverse));
    }
}

/* ---- the forward ---- */

/* Threads share a stage's items as they come, and leave it when all items are done, whoever did them: one that the
   system has put aside holds nobody up, unless it was put aside in the middle of an item. */
typedef struct {
    _Alignas(64) atomic_int taken;
    atomic_int done;
} Stage;

static void wait(Stage *stage, int32_t items) {
    for (int spins = 0; atomic_load_explicit(&stage->done, memory_order_acquire) < items; spins++) {
        if (spins > 2000) sched_yield();
#if defined(__x86_64__) || defined(__i386__)
        else __builtin_ia32_pause();
#endif
    }
}

#define EACH(item, items, ...)                                                               \
    {                                                                                        \
        const int32_t all_items = (items);                                                   \
        for (int32_t item; (item = atomic_fetch_add(&stage->taken, 1)) < all_items;) {       \
            __VA_ARGS__;                                                                     \
            atomic_fetch_add_explicit(&stage->done, 1, memory_order_release);                \
        }                                                                                    \
        wait(stage++, all_items);                                                            \
    }
#define NORM(which, from, to) EACH(row, rows, normalise(m, which, (from) + row * width, (to) + row * width, width))
#define PRODUCT(which, from, to, residual, activation, gated)                                                   \
    {                                                                                                           \
        const int32_t panels = whole((which)->outputs / ((gated) + 1), PANEL) / PANEL;                           \
        const int32_t parts = smaller(panels, 8 * threads);                                                     \
        EACH(part, parts, for (int64_t panel = (int64_t)panels * part / parts;                                  \
                               panel < (int64_t)panels * (part + 1) / parts; panel++)                           \
                              product(which, panel, from, to, residual, rows, activation, gated))               \
    }

static int64_t stages(const Model *m) { return 9 * m->layers + 6; }

static int64_t widest(const Model *m) {
    int64_t most = m->width > m->token_embedding.inputs ? m->width : m->token_embedding.inputs;
    return most > (int64_t)m->heads * m->head_size ? most : (int64_t)m->heads * m->head_size;
}

/* How many floats a forward of so many rows needs to work in. */
int64_t sybil_scratch(const Model *m, int64_t rows, int64_t capacity, int64_t threads) {
    int64_t heads = m->heads + 2 * m->kv_heads, own = capacity + LANES + 2 * whole(m->head_size, LANES);
    return rows * (3 * widest(m) + heads * m->head_size + m->inner) + threads * own + 16 * (stages(m) + 1);
}

/* tokens (batch, count) go in at each row's length; logits (batch * count, vocab), or NULL for a prefill. */
void sybil_forward(const Model *m, const Cache *cache, const int64_t *tokens, const int64_t *lengths, int32_t count,
                   float *logits, float *scratch, int32_t threads) {
    const int32_t rows = cache->batch * count, width = m->width, head_size = m->head_size;
    const int32_t stride = whole(head_size, LANES), mixed = m->heads * head_size, group = m->heads / m->kv_heads;
    const int32_t each = m->heads + 2 * m->kv_heads, joined = each * head_size;
    const int64_t per_head = (int64_t)cache->capacity * stride, per_layer = per_head * m->kv_heads * cache->batch;
    Stage *const begin = (Stage *)(((uintptr_t)scratch + 63) / 64 * 64);
    float *x = (float *)(begin + stages(m)), *normed = x + rows * widest(m), *second = normed + rows * widest(m);
    float *heads = second + rows * widest(m), *inner = heads + (int64_t)rows * joined;
    float *own = inner + (int64_t)rows * m->inner;
    memset(begin, 0, stages(m) * sizeof(Stage));

#pragma omp parallel num_threads(threads)
    {
#ifdef _OPENMP
        float *query = own + omp_get_thread_num() * (int64_t)(cache->capacity + LANES + 2 * stride);
#else
        float *query = own;
#endif
        float *answer = query + stride, *scores = answer + stride;
        Stage *stage = begin;
#define PLACE(row) (lengths[(row) / count] + (row) % count)
#define LEARNED(row) (m->positions + (smaller(PLACE(row), m->context - 1) + m->position_offset) * (int64_t)width)

        float *embedded = m->project_in.weight ? normed : x;
        EACH(row, rows, unpack(&m->token_embedding, tokens[row], embedded + row * m->token_embedding.inputs))
        if (m->project_in.weight) PRODUCT(&m->project_in, embedded, x, NULL, NONE, 0)
        if (m->positions) EACH(row, rows, {
            const float *learned = LEARNED(row);
            for (int32_t at = 0; at < width; at++) x[row * width + at] += learned[at];
        })

        for (int32_t layer = 0; layer < m->layers; layer++) {
            const Block *block = &m->blocks[layer];
            float *keys = cache->keys + layer * per_layer, *values = cache->values + layer * per_layer;

            if (!m->post_norm) NORM(block->attention_norm, x, normed)
            if (m->parallel) NORM(block->mlp_norm, x, second)
            PRODUCT(&block->query_key_value, m->post_norm ? x : normed, heads, NULL, NONE, 0)
            EACH(row, rows, { /* keys are turned to their positions, and go into the cache with their values */
                int64_t place = PLACE(row);
                for (int32_t which = 0; which < each; which++) {
                    float *head = heads + (int64_t)row * joined + which * head_size;
                    int32_t kind = (which >= m->heads) + (which >= m->heads + m->kv_heads); /* query, key, value */
                    if (kind < 2) {
                        Norm norm = kind ? block->key_norm : block->query_norm;
                        if (norm.weight) normalise(m, norm, head, head, head_size);
                        if (m->rotary_size) rotate(m, head, smaller(place, m->context - 1));
                    }
                    if (kind == 0) continue;
                    int64_t kv_head = row / count * m->kv_heads + (which - m->heads) % m->kv_heads;
                    memcpy((kind == 1 ? keys : values) + kv_head * per_head + place * stride, head, head_size * 4);
                }
            })
            EACH(unit, rows * m->heads, {
                int64_t row = unit % rows, head = unit / rows, place = PLACE(row);
                int64_t at = (row / count * m->kv_heads + head / group) * per_head;
                int32_t from = m->window && place >= m->window ? place - m->window + 1 : 0;
                memset(query, 0, stride * 4); /* pads the head to whole lanes, as the cache's zeros do */
                memcpy(query, heads + row * joined + head * head_size, head_size * 4);
                attend(query, keys + at, values + at, from, place, stride, m->attention_scale, scores, answer);
                memcpy(normed + row * mixed + head * head_size, answer, head_size * 4);
            })
            PRODUCT(&block->attention_out, normed, x, x, NONE, 0)
            if (m->post_norm) NORM(block->attention_norm, x, x)
            else if (!m->parallel) NORM(block->mlp_norm, x, second)
            PRODUCT(&block->mlp_in, m->post_norm ? x : second, inner, NULL, m->activation, m->gated)
            PRODUCT(&block->mlp_out, inner, x, x, NONE, 0)
            if (m->post_norm) NORM(block->mlp_norm, x, x)
        }
        if (logits) {
            float *last = x;
            if (m->final_norm.weight) {
                NORM(m->final_norm, x, normed)
                last = normed;
            }
            if (m->project_out.weight) {
                PRODUCT(&m->project_out, last, second, NULL, NONE, 0)
                last = second;
            }
            PRODUCT(&m->head, last, logits, NULL, NONE, 0)
        }
    }
}
