/* The decoder-only forward of operators/transformer.py on a CPU, in one call: see transformer.py beside this file.

   Every sum below is computed in one fixed order, which depends on the row's own numbers only. It doesn't depend on how
   many rows are computed together, on a token's place among them, on threads or on the cache's capacity. So a token's
   logits have the same bits whatever is verified beside it.

   "Rows" are the batch * count tokens of a call. All arithmetic is float32, whatever the weights are stored in. */

#include "attention.h"
#include "drawing.h"
#include "filling.h"
#include "pool.h"
#include "products.h"
#include "racing.h"
#include "refusal.h"
#include "rounding.h"

int32_t sybil_panel(void) { return PANEL; }
int32_t sybil_lanes(void) { return LANES; }

/* The sizes of the structs by this compiler. library.py compares them with those of structs.py. */
const int64_t *sybil_sizes(void) {
    static const int64_t sizes[] = {sizeof(Floats), sizeof(Part),  sizeof(Product), sizeof(Norm),
                                    sizeof(Block),  sizeof(Model), sizeof(Cache)};
    return sizes;
}

/* Returns why a model can't be run, or NULL where it can. It is called once, before the first forward. */
const char *sybil_refusal(Model *m) {
    const char *refusal = model_refusal(m);
    m->sound = !refusal;
    return refusal;
}

#define PRODUCT(which, from, to, residual, activation, gated)                                                \
    {                                                                                                        \
        const Inputs given = inputs_of(which, from, rows, rounded);                                          \
        EACH(panel, panels_of(which, gated),                                                                 \
             product(share, which, panel, &given, to, residual, rows, activation, gated))                    \
    }
#define ALONE(item, items, ...) EACH(item, items, if (publish(share)) __VA_ARGS__) /* for short work */

/* A call, and the working memory that its threads share. */
typedef struct {
    const Model *m;
    Cache cache;
    float *logits, *x, *mixed, *aside, *heads, *inner;
    int32_t count;
    int64_t numbers[]; /* the rows' lengths, and then the tokens */
} Forward;

static int64_t call_bytes(int64_t rows) { return whole(sizeof(Forward) + 16 * rows, 64); }

static int64_t widest(const Model *m) {
    int64_t most = m->width > m->token_embedding.inputs ? m->width : m->token_embedding.inputs;
    return most > (int64_t)m->heads * m->head_size ? most : (int64_t)m->heads * m->head_size;
}

static int64_t roundings(const Model *m, int64_t rows) {
    return whole(rounded_floats(rows, widest(m) > m->inner ? widest(m) : m->inner), 16);
}

/* How many floats each thread has for itself: for a product's rounded rows, normalised rows, a head, and scores. */
static int64_t private(const Model *m, int64_t rows, int64_t capacity) {
    return whole(roundings(m, rows) + rows * m->width + whole(m->head_size, LANES) + capacity + 2 * LANES, 16);
}

/* How many floats of working memory a forward of `rows` rows needs; 0 where the arguments are out of range. */
int64_t sybil_scratch(const Model *m, int64_t rows, int64_t capacity) {
    if (!m->sound || !within(rows, 1, MOST_WIDE) || !within(capacity, 0, MOST_LONG)) return 0;
    int64_t heads = m->heads + 2 * m->kv_heads;
    return 16 + call_bytes(rows) / 4 + rows * (3 * widest(m) + heads * m->head_size + m->inner) + private(m, rows, capacity);
}

/* Normalises rows. Each thread computes all rows for itself, for the product that follows. That is cheaper than sharing
   the work and waiting for other threads. */
static void norm_rows(const Model *m, Norm norm, const float *x, float *out, int32_t rows) {
    for (int64_t row = 0; row < rows; row++) normalise(m, norm, x + row * m->width, out + row * m->width, m->width);
}

/* Adds the output of attention or of the MLP to x. Where the model normalises outputs, the output is normalised first. */
static void add_row(const Model *m, Norm norm, float *given, float *x) {
    if (m->normed == OF_OUTPUT || m->normed == OF_BOTH) normalise(m, norm, given, given, m->width);
    for (int32_t at = 0; at < m->width; at++) x[at] += given[at] * m->residual_scale;
}

static void finish_logits(const Model *m, float *logits, int32_t size) {
    for (int32_t at = 0; at < size; at++) logits[at] /= m->logit_divisor;
    for (int32_t at = 0; m->logit_cap > 0 && at < size; at += LANES) {
        float some[LANES] = {0};
        const int64_t bytes = smaller(LANES, size - at) * sizeof(float);
        memcpy(some, logits + at, bytes);
        store(some, capped(load(some), m->logit_cap));
        memcpy(logits + at, some, bytes);
    }
}

static const char *call_refusal(const Model *m, const Cache *cache, const int64_t *tokens, const int64_t *lengths,
                                int32_t count, const float *scratch, int64_t floats, int32_t threads) {
    NEED(m && m->sound);
    NEED(within(threads, 1, MOST_THREADS));
    const char *refusal = cache_refusal(m, cache, count);
    if (refusal) return refusal;
    NEED(scratch && floats >= sybil_scratch(m, (int64_t)cache->batch * count, cache->capacity));
    return tokens_refusal(m, cache, tokens, lengths, count);
}

/* The work of one thread in a call. */
static void compute(const void *job, void *own, Share *share) {
    const Forward *call = job;
    const Model *m = call->m;
    const Cache *cache = &call->cache;
    const int64_t *lengths = call->numbers, *tokens = lengths + cache->batch;
    const int32_t count = call->count, rows = cache->batch * count, width = m->width, size = m->head_size;
    const int64_t embedded = m->token_embedding.inputs, queries = (int64_t)m->heads * size;
    const int64_t keys = (int64_t)m->kv_heads * size, joined = queries + 2 * keys;
    const int in = m->normed == OF_INPUT || m->normed == OF_BOTH; /* norms come before attention and the MLP */
    const int apart = m->normed == OF_OUTPUT || m->normed == OF_BOTH || m->residual_scale != 1; /* outputs need work before they are added */
    float *x = call->x, *mixed = call->mixed, *aside = call->aside, *heads = call->heads, *inner = call->inner;
    float *rounded = own, *normed = rounded + roundings(m, rows), *rest = normed + (int64_t)rows * width;

    float *first = m->project_in.outputs ? mixed : x;
    ALONE(row, rows, {
        float *embedding = first + row * embedded;
        unpack(&m->token_embedding, tokens[row], embedding);
        for (int32_t at = 0; at < embedded; at++) embedding[at] *= m->embedding_scale;
    })
    if (m->project_in.outputs) PRODUCT(&m->project_in, first, x, NULL, NONE, 0)
    if (m->positions.at) ALONE(row, rows, {
        int64_t place = lengths[row / count] + row % count;
        const float *learned = m->positions.at + (smaller(place, m->context - 1) + m->position_offset) * (int64_t)width;
        for (int32_t at = 0; at < width; at++) x[row * width + at] += learned[at];
    })

    for (int64_t number = 0; number < m->block_count; number++) {
        const Block *block = &m->blocks[number];
        const int64_t layer = block->layer;
        if (in) norm_rows(m, block->attention_norm, x, normed, rows);
        if (m->parallel) ALONE(row, rows, norm_rows(m, block->mlp_norm, x + row * width, aside + row * width, 1))
        PRODUCT(&block->query_key_value, in ? normed : x, heads, NULL, NONE, 0)
        if (m->query_key_norm == WHOLE) ALONE(row, rows, {
            float *query = heads + row * joined, *key = query + queries;
            normalise(m, block->query_norm, query, query, queries);
            normalise(m, block->key_norm, key, key, keys);
        })
        ALONE(each, (int64_t)rows * m->kv_heads, {
            int64_t row = each / m->kv_heads;
            enter(m, block, cache, layer, row / count, each % m->kv_heads, lengths[row / count] + row % count,
                  heads + row * joined);
        })
        EACH(each, (int64_t)rows * m->heads, {
            int64_t head = each / count % m->heads, row = each / count / m->heads, token = each % count, at = row * count + token;
            attention(share, m, block, cache, layer, row, head, lengths[row] + token, heads + at * joined + head * size,
                      mixed + at * queries + head * size, rest);
        })
        PRODUCT(&block->attention_out, mixed, apart ? aside : x, apart ? NULL : x, NONE, 0)
        if (apart) ALONE(row, rows, add_row(m, block->attention_out_norm, aside + row * width, x + row * width))
        if (m->normed == OF_SUM) ALONE(row, rows, norm_rows(m, block->attention_norm, x + row * width, x + row * width, 1))
        if (in && !m->parallel) norm_rows(m, block->mlp_norm, x, normed, rows);
        PRODUCT(&block->mlp_in, m->parallel ? aside : in ? normed : x, inner, NULL, m->activation, m->gated)
        PRODUCT(&block->mlp_out, inner, apart ? aside : x, apart ? NULL : x, NONE, 0)
        if (apart) ALONE(row, rows, add_row(m, block->mlp_out_norm, aside + row * width, x + row * width))
        if (m->normed == OF_SUM) ALONE(row, rows, norm_rows(m, block->mlp_norm, x + row * width, x + row * width, 1))
    }
    if (!call->logits) return;
    float *last = x;
    if (m->final_norm.weight.at) norm_rows(m, m->final_norm, x, last = normed, rows);
    if (m->project_out.outputs) {
        PRODUCT(&m->project_out, last, mixed, NULL, NONE, 0)
        last = mixed;
    }
    PRODUCT(&m->head, last, call->logits, NULL, NONE, 0)
    if (m->logit_divisor != 1 || m->logit_cap > 0) {
        const int64_t some = 4096, pieces = whole(m->vocab_size, some) / some;
        ALONE(each, rows * pieces, {
            int64_t at = each % pieces * some;
            finish_logits(m, call->logits + each / pieces * m->vocab_size + at, smaller(some, m->vocab_size - at));
        })
    }
}

/* Writes tokens (batch, count) at each row's length and computes logits (batch * count, vocab); logits is NULL for a
   prefill. Returns NULL, or the reason why the call is refused; then nothing has been done. If sybil_late() is true
   afterwards, a worker may still read the model, the cache and the scratch. */
const char *sybil_forward(const Model *m, const Cache *cache, const int64_t *tokens, const int64_t *lengths, int32_t count,
                          float *logits, float *scratch, int64_t floats, int32_t threads) {
    const char *refusal = call_refusal(m, cache, tokens, lengths, count, scratch, floats, threads);
    if (refusal) return refusal;
    const int64_t rows = cache->batch * count, joined = (int64_t)(m->heads + 2 * m->kv_heads) * m->head_size;
    Forward *call = (Forward *)(((uintptr_t)scratch + 63) / 64 * 64);
    float *x = (float *)((char *)call + call_bytes(rows)), *mixed = x + rows * widest(m), *aside = mixed + rows * widest(m);
    float *heads = aside + rows * widest(m), *inner = heads + rows * joined, *own = inner + rows * m->inner;
    *call = (Forward){m, *cache, logits, x, mixed, aside, heads, inner, count};
    memcpy(call->numbers, lengths, 8 * cache->batch);
    memcpy(call->numbers + cache->batch, tokens, 8 * rows);
    Job job = {.work = compute, .job = call, .bytes = call_bytes(rows), .threads = threads};
    job.own = 4 * private(m, rows, cache->capacity);
    share_out(&job, own);
    return NULL;
}
