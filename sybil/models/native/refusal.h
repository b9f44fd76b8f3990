/* The checks by which the forward refuses every call and model that would make it read or write outside its memory. */

#pragma once

#include "pool.h"
#include "products.h"

#define MOST_LAYERS (1 << 16)
#define MOST_WIDE (1 << 24) /* numbers of a row; rows of a call */
#define MOST_LONG (1 << 30) /* tokens of a vocabulary, a context, a cache's row; items that threads share */

/* For functions that return NULL or the reason of a refusal: returns the condition's text where it doesn't hold. */
#define NEED(condition) \
    if (!(condition)) return #condition

static int within(int64_t value, int64_t least, int64_t most) { return least <= value && value <= most; }

/* The product of two counts, or a number above every limit where the product is too large. */
static int64_t times(int64_t a, int64_t b) {
    int64_t product;
    return __builtin_mul_overflow(a, b, &product) ? INT64_MAX : product;
}

static int holds(Floats floats, int64_t count) { return floats.at ? floats.count == count : !floats.count; }

static int is_norm(Norm norm, int64_t size) {
    return norm.weight.at && holds(norm.weight, size) && holds(norm.bias, size);
}

static int is_scale(float value, float least) { return isfinite(value) && value >= least; }

static int is_part(const Part *part, int64_t inputs) {
    if (!part->weight || !within(part->storage, 0, STORAGES - 1) || !within(part->outputs, 1, MOST_LONG)) return 0;
    const Record record = record_of(part->storage);
    const int64_t padded = whole(part->outputs, PANEL), panel = times(whole(inputs, record.inputs) / record.inputs, record.bytes);
    return (inputs % record.inputs == 0 || is_rounded(part->storage)) && part->bytes == times(padded / PANEL, panel)
           && holds(part->bias, padded);
}

static int is_no_part(const Part *part) {
    return !part->weight && !part->bytes && !part->bias.at && !part->outputs;
}

/* gated: the product has two parts with equally many outputs, the gates and the values that they multiply. */
static int is_product(const Product *p, int64_t inputs, int64_t outputs, int gated) {
    int64_t found = 0;
    int parts = 0;
    for (; parts < PARTS && !is_no_part(&p->parts[parts]); found += p->parts[parts++].outputs)
        if (!is_part(&p->parts[parts], inputs)) return 0;
    for (int part = parts; part < PARTS; part++)
        if (!is_no_part(&p->parts[part])) return 0;
    if (gated && (parts != 2 || p->parts[0].outputs != outputs)) return 0;
    return p->inputs == inputs && p->outputs == found && found == (1 + gated) * outputs;
}

static const char *model_refusal(const Model *m) {
    NEED(within(m->vocab_size, 1, MOST_LONG));
    NEED(within(m->context, 1, MOST_LONG));
    NEED(within(m->layers, 0, MOST_LAYERS) && m->blocks);
    NEED(within(m->block_count, 0, m->layers));
    NEED(within(m->width, 1, MOST_WIDE));
    NEED(within(m->inner, 1, MOST_WIDE));
    NEED(within(m->heads, 1, MOST_WIDE) && within(m->kv_heads, 1, MOST_WIDE) && m->heads % m->kv_heads == 0);
    NEED(within(m->head_size, 1, MOST_WIDE));
    NEED(within(times(m->heads + 2 * (int64_t)m->kv_heads, m->head_size), 1, MOST_WIDE));
    NEED(within(m->activation, 0, ACTIVATIONS - 1));
    NEED(within(m->norm, 0, NORMS - 1));
    NEED(within(m->gated, 0, 1) && within(m->normed, 0, NORMED - 1) && within(m->parallel, 0, 1));
    NEED(within(m->query_key_norm, 0, QUERY_KEY_NORMS - 1));
    NEED(!m->parallel || (m->normed == OF_INPUT && m->residual_scale == 1)); /* otherwise both would use the same spare rows */
    NEED(within(m->position_offset, 0, MOST_LONG));
    NEED(is_scale(m->epsilon, 0) && is_scale(m->attention_cap, 0) && is_scale(m->logit_cap, 0));
    NEED(isfinite(m->attention_scale) && isfinite(m->embedding_scale) && isfinite(m->residual_scale));
    NEED(isfinite(m->logit_divisor) && m->logit_divisor != 0);
    const int in = m->normed != OF_OUTPUT, out = m->normed == OF_OUTPUT || m->normed == OF_BOTH;
    const int64_t width = m->width, queries = (int64_t)m->heads * m->head_size, keys = (int64_t)m->kv_heads * m->head_size;
    const int64_t joined = queries + 2 * keys, embedded = m->token_embedding.inputs;
    const int whole_heads = m->query_key_norm == WHOLE;
    for (int64_t each = 0; each < m->block_count; each++) {
        const Block *block = &m->blocks[each];
        const int64_t half = block->rotary_size / 2;
        NEED(!in || (is_norm(block->attention_norm, width) && is_norm(block->mlp_norm, width)));
        NEED(!out || (is_norm(block->attention_out_norm, width) && is_norm(block->mlp_out_norm, width)));
        NEED(!m->query_key_norm || is_norm(block->query_norm, whole_heads ? queries : m->head_size));
        NEED(!m->query_key_norm || is_norm(block->key_norm, whole_heads ? keys : m->head_size));
        NEED(within(block->layer, 0, m->layers - 1));
        NEED(within(block->window, 0, INT32_MAX));
        NEED(within(block->rotary_size, 0, m->head_size) && block->rotary_size % 2 == 0);
        NEED(!half || (block->cosines.at && holds(block->cosines, times(m->context, half))));
        NEED(!half || (block->sines.at && holds(block->sines, times(m->context, half))));
        NEED(is_product(&block->query_key_value, width, joined, 0));
        NEED(is_product(&block->attention_out, queries, width, 0));
        NEED(is_product(&block->mlp_in, width, m->inner, m->gated));
        NEED(is_product(&block->mlp_out, m->inner, width, 0));
    }
    NEED(!m->final_norm.weight.at || is_norm(m->final_norm, width));
    NEED(within(embedded, 1, MOST_WIDE) && is_product(&m->token_embedding, embedded, m->vocab_size, 0));
    NEED(is_no_part(&m->token_embedding.parts[1])); /* unpack() reads the first part only */
    NEED(is_product(&m->head, m->project_out.outputs ? embedded : width, m->vocab_size, 0));
    NEED(m->project_in.outputs ? is_product(&m->project_in, embedded, width, 0) : embedded == width);
    NEED(!m->project_out.outputs || is_product(&m->project_out, width, embedded, 0));
    NEED(holds(m->positions, times((int64_t)m->context + m->position_offset, width)));
    return NULL;
}

/* Checks the rows of a call and the cache that they are written to. */
static const char *cache_refusal(const Model *m, const Cache *cache, int64_t count) {
    NEED(cache && cache->keys && cache->values);
    NEED(within(cache->batch, 1, MOST_WIDE) && within(count, 1, MOST_WIDE / cache->batch));
    NEED(within(times(cache->batch * count, m->heads), 1, MOST_LONG));
    NEED(within(cache->capacity, 0, MOST_LONG) && count <= cache->capacity);
    NEED(cache->places == whole(cache->capacity, LANES));
    const int64_t rows = times((int64_t)m->layers * cache->batch, m->kv_heads);
    NEED(cache->floats == times(rows, times(whole(m->head_size, LANES), cache->places)));
    return NULL;
}

static const char *tokens_refusal(const Model *m, const Cache *cache, const int64_t *tokens, const int64_t *lengths,
                                  int32_t count) {
    NEED(tokens && lengths);
    for (int32_t row = 0; row < cache->batch * count; row++) NEED(within(tokens[row], 0, m->vocab_size - 1));
    for (int32_t row = 0; row < cache->batch; row++) NEED(within(lengths[row], 0, cache->capacity - count));
    return NULL;
}
