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
#define BLOCK (1 << 13)      /* bytes of weights that every row is multiplied by before the next come */
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
    const float *weight, *bias; /* weight NULL: no norm; bias NULL: it adds none */
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
    const float *positions;      /* (context + offset, width) or NULL */
    const float *cosines, *sines; /* (context, rotary_size / 2) or NULL */
} Model;

typedef struct { /* head stride: head size in whole lanes; capacity: whole lanes */
    float *keys;   /* (layers, batch, kv_heads, head stride, capacity) */
    float *values; /* (layers, batch, kv_heads, capacity, head stride) */
    int32_t batch, capacity;
} Cache;

int32_t sybil_panel(void) { return PANEL; }
int32_t sybil_lanes(void) { return LANES; }

static inline int64_t whole(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }
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
    if (norm.bias)
        for (int32_t at = 0; at < size; at++) out[at] = (x[at] - mean) * factor * norm.weight[at] + norm.bias[at];
    else
        for (int32_t at = 0; at < size; at++) out[at] = (x[at] - mean) * factor * norm.weight[at];
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

/* scores of so many vectors of keys: query . keys * scale. Each key's sum is its own, vectors only share the queries. */
static inline __attribute__((always_inline)) void score(const float *query, const float *keys, int64_t capacity,
                                                        int32_t head_size, float scale, const int vectors, float *scores) {
    Lanes total[vectors];
    for (int at = 0; at < vectors; at++) total[at] = all(0.0f);
    for (int64_t part = 0; part < head_size; part++)
        for (int at = 0; at < vectors; at++) total[at] += all(query[part]) * load(keys + part * capacity + at * LANES);
    for (int at = 0; at < vectors; at++) store(scores + at * LANES, total[at] * all(scale));
}

/* out = shares . values, for so many vectors of a head. */
static inline __attribute__((always_inline)) void mix(const float *shares, const float *values, int32_t stride,
                                                      int32_t from, int32_t last, float factor, const int vectors, float *out) {
    Lanes total[vectors];
    for (int at = 0; at < vectors; at++) total[at] = all(0.0f);
    for (int64_t key = from; key <= last; key++)
        for (int at = 0; at < vectors; at++) total[at] += all(shares[key]) * load(values + key * stride + at * LANES);
    for (int at = 0; at < vectors; at++) store(out + at * LANES, total[at] * all(factor));
}

/* softmax(query . keys * scale) . values over the keys from..last. keys: (head size, capacity), so that a vector holds
   as many keys and nothing is summed across one; values: (capacity, head stride); out: one head, in whole lanes. */
static void attend(const float *query, const float *keys, const float *values, int64_t capacity, int32_t from, int32_t last,
                   int32_t head_size, float scale, float *scores, float *out) {
    const int32_t stride = whole(head_size, LANES), start = from / LANES * LANES, end = whole(last + 1, LANES);
    int32_t at = start;
    for (; at + 6 * LANES <= end; at += 6 * LANES) score(query, keys + at, capacity, head_size, scale, 6, scores + at);
    for (; at < end; at += LANES) score(query, keys + at, capacity, head_size, scale, 1, scores + at);
    for (int32_t key = start; key < from; key++) scores[key] = -INFINITY;
    for (int32_t key = last + 1; key < end; key++) scores[key] = -INFINITY;

    Lanes highest = all(-INFINITY), total = all(0.0f);
    for (int32_t key = start; key < end; key += LANES) {
        Lanes other = load(scores + key);
        highest = choose(other > highest, other, highest);
    }
    float most = highest[0];
    for (int lane = 1; lane < LANES; lane++) most = highest[lane] > most ? highest[lane] : most;
    for (int32_t key = start; key < end; key += LANES) {
        Lanes other = load(scores + key);
        Lanes share = choose(other == all(-INFINITY), all(0.0f), exponential(other - all(most)));
        store(scores + key, share);
        total += share;
    }
    float factor = 1.0f / sum(total);
    for (at = 0; at + 4 * LANES <= stride; at += 4 * LANES) mix(scores, values + at, stride, from, last, factor, 4, out + at);
    for (; at < stride; at += LANES) mix(scores, values + at, stride, from, last, factor, 1, out + at);
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
#define PRODUCT(which, from, to, residual, activation, gated)                                     \
    {                                                                                             \
        const int32_t panels = whole((which)->outputs / ((gated) + 1), PANEL) / PANEL;             \
        const int32_t parts = smaller(panels, 8 * threads);                                       \
        EACH(part, parts, for (int64_t panel = (int64_t)panels * part / parts;                    \
                               panel < (int64_t)panels * (part + 1) / parts; panel++)             \
                              product(which, panel, from, to, residual, rows, activation, gated)) \
    }

static int64_t stages(const Model *m) { return 7 * m->layers + 5; }

static int64_t widest(const Model *m) {
    int64_t most = m->width > m->token_embedding.inputs ? m->width : m->token_embedding.inputs;
    return most > (int64_t)m->heads * m->head_size ? most : (int64_t)m->heads * m->head_size;
}

/* Floats that each thread has for itself: normalised rows; a head; scores. */
static int64_t private(const Model *m, int64_t rows, int64_t capacity) {
    return whole(rows * m->width + whole(m->head_size, LANES) + capacity + 2 * LANES, 16);
}

/* How many floats a forward of so many rows needs to work in. */
int64_t sybil_scratch(const Model *m, int64_t rows, int64_t capacity, int64_t threads) {
    int64_t heads = m->heads + 2 * m->kv_heads;
    return 16 * (stages(m) + 1) + rows * (3 * widest(m) + heads * m->head_size + m->inner)
           + threads * private(m, rows, capacity);
}

/* Each thread's own copy, for the product that follows: cheaper than waiting for others to share the work. A thread
   that is late reads what the next stages have written, but finds nothing left to use it for. */
static void norm_rows(const Model *m, Norm norm, const float *x, float *out, int32_t rows) {
    for (int64_t row = 0; row < rows; row++) normalise(m, norm, x + row * m->width, out + row * m->width, m->width);
}

/* The attention of one row of the batch and one head of keys and values, whose group of queries it serves:
   heads (count, each * head size) are rotated, keys and values go into the cache, out (count, heads * head size). */
static void attention(const Model *m, const Block *block, const Cache *cache, int64_t layer, int32_t row, int32_t kv_head,
                      int64_t start, int32_t count, float *heads, float *out, float *own) {
    const int32_t size = m->head_size, stride = whole(size, LANES), group = m->heads / m->kv_heads;
    const int64_t joined = (int64_t)(m->heads + 2 * m->kv_heads) * size, capacity = cache->capacity;
    const int64_t at = ((layer * cache->batch + row) * m->kv_heads + kv_head) * stride * capacity;
    float *keys = cache->keys + at, *values = cache->values + at, *answer = own, *scores = own + stride;
    for (int32_t token = 0; token < count; token++) {
        int64_t place = start + token;
        float *key = heads + token * joined + (m->heads + kv_head) * (int64_t)size;
        if (block->key_norm.weight) normalise(m, block->key_norm, key, key, size);
        if (m->rotary_size) rotate(m, key, smaller(place, m->context - 1));
        for (int32_t each = 0; each < size; each++) keys[each * capacity + place] = key[each];
        memcpy(values + place * stride, key + m->kv_heads * (int64_t)size, size * sizeof(float));
        for (int32_t head = kv_head * group; head < (kv_head + 1) * group; head++) {
            float *query = heads + token * joined + head * (int64_t)size;
            if (block->query_norm.weight) normalise(m, block->query_norm, query, query, size);
            if (m->rotary_size) rotate(m, query, smaller(place, m->context - 1));
            int32_t from = m->window && place >= m->window ? place - m->window + 1 : 0;
            attend(query, keys, values, capacity, from, place, size, m->attention_scale, scores, answer);
            memcpy(out + (token * m->heads + head) * (int64_t)size, answer, size * sizeof(float));
        }
    }
}

/* tokens (batch, count) go in at each row's length; logits (batch * count, vocab), or NULL for a prefill.
   0 where a token isn't of the vocabulary or finds no place in the cache: nothing has been done then. */
int32_t sybil_forward(const Model *m, const Cache *cache, const int64_t *tokens, const int64_t *lengths, int32_t count,
                   float *logits, float *scratch, int32_t threads) {
    const int32_t rows = cache->batch * count, width = m->width, embedded = m->token_embedding.inputs;
    const int64_t joined = (int64_t)(m->heads + 2 * m->kv_heads) * m->head_size;
    Stage *const begin = (Stage *)(((uintptr_t)scratch + 63) / 64 * 64);
    float *x = (float *)(begin + stages(m)), *mixed = x + rows * widest(m), *aside = mixed + rows * widest(m);
    float *heads = aside + rows * widest(m), *inner = heads + rows * joined, *privates = inner + (int64_t)rows * m->inner;
    memset(begin, 0, stages(m) * sizeof(Stage));
    for (int32_t row = 0; row < rows; row++)
        if (tokens[row] < 0 || tokens[row] >= m->vocab_size) return 0;
    for (int32_t row = 0; row < cache->batch; row++)
        if (lengths[row] < 0 || lengths[row] + count > cache->capacity) return 0;

#pragma omp parallel num_threads(threads)
    {
#ifdef _OPENMP
        float *own = privates + omp_get_thread_num() * private(m, rows, cache->capacity);
#else
        float *own = privates;
#endif
        float *normed = own, *rest = own + (int64_t)rows * width;
        Stage *stage = begin;

        float *first = m->project_in.weight ? mixed : x;
        EACH(row, rows, unpack(&m->token_embedding, tokens[row], first + (int64_t)row * embedded))
        if (m->project_in.weight) PRODUCT(&m->project_in, first, x, NULL, NONE, 0)
        if (m->positions) EACH(row, rows, {
            int64_t place = lengths[row / count] + row % count;
            const float *learned = m->positions + (smaller(place, m->context - 1) + m->position_offset) * (int64_t)width;
            for (int32_t at = 0; at < width; at++) x[(int64_t)row * width + at] += learned[at];
        })

        for (int32_t layer = 0; layer < m->layers; layer++) {
            const Block *block = &m->blocks[layer];
            if (!m->post_norm) norm_rows(m, block->attention_norm, x, normed, rows);
            if (m->parallel)
                EACH(row, rows, norm_rows(m, block->mlp_norm, x + (int64_t)row * width, aside + (int64_t)row * width, 1))
            PRODUCT(&block->query_key_value, m->post_norm ? x : normed, heads, NULL, NONE, 0)
            EACH(unit, cache->batch * m->kv_heads, {
                int64_t row = unit / m->kv_heads;
                attention(m, block, cache, layer, row, unit % m->kv_heads, lengths[row], count,
                          heads + row * count * joined, mixed + row * count * m->heads * m->head_size, rest);
            })
            PRODUCT(&block->attention_out, mixed, x, x, NONE, 0)
            if (m->post_norm)
                EACH(row, rows, norm_rows(m, block->attention_norm, x + (int64_t)row * width, x + (int64_t)row * width, 1))
            else if (!m->parallel) norm_rows(m, block->mlp_norm, x, normed, rows);
            PRODUCT(&block->mlp_in, m->post_norm ? x : m->parallel ? aside : normed, inner, NULL, m->activation, m->gated)
            PRODUCT(&block->mlp_out, inner, x, x, NONE, 0)
            if (m->post_norm)
                EACH(row, rows, norm_rows(m, block->mlp_norm, x + (int64_t)row * width, x + (int64_t)row * width, 1))
        }
        if (logits) {
            float *last = x;
            if (m->final_norm.weight) norm_rows(m, m->final_norm, x, last = normed, rows);
            if (m->project_out.weight) {
                PRODUCT(&m->project_out, last, mixed, NULL, NONE, 0)
                last = mixed;
            }
            PRODUCT(&m->head, last, logits, NULL, NONE, 0)
        }
    }
    return 1;
}
