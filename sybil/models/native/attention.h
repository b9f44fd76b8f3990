/* Norms, rotation, attention. */

#pragma once

#include <string.h>

#include "lanes.h"
#include "stages.h"

/* The sum of (x - mean)^2, by lanes. The last vector, where it is incomplete, is filled up with the mean. */
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
    const float *weight = norm.weight.at, *bias = norm.bias.at;
    if (bias)
        for (int32_t at = 0; at < size; at++) out[at] = (x[at] - mean) * factor * weight[at] + bias[at];
    else
        for (int32_t at = 0; at < size; at++) out[at] = (x[at] - mean) * factor * weight[at];
}

/* Rotary embedding: rotates the first rotary_size numbers of a head, each of the first half with one of the second. */
static void rotate(const Block *block, float *head, int64_t position) {
    int32_t half = block->rotary_size / 2;
    const float *cosines = block->cosines.at + position * half, *sines = block->sines.at + position * half;
    for (int32_t at = 0; at < half; at++) {
        float first = head[at], second = head[half + at];
        head[at] = fused(first, cosines[at], -(second * sines[at]));
        head[half + at] = second * cosines[at] + first * sines[at];
    }
}

/* The scores query . keys * scale for several vectors of keys. Each key has its own sum; the vectors share only the
   loads of the query. */
static inline __attribute__((always_inline)) void score(const float *query, const float *keys, int64_t places,
                                                        int32_t head_size, float scale, const int vectors, float *scores) {
    Lanes total[vectors];
    for (int at = 0; at < vectors; at++) total[at] = all(0.0f);
    for (int64_t part = 0; part < head_size; part++)
        for (int at = 0; at < vectors; at++) total[at] += all(query[part]) * load(keys + part * places + at * LANES);
    for (int at = 0; at < vectors; at++) store(scores + at * LANES, total[at] * all(scale));
}

/* out = shares . values, for several vectors of a head. */
static inline __attribute__((always_inline)) void mix(const float *shares, const float *values, int32_t stride,
                                                      int32_t from, int32_t last, float factor, const int vectors, float *out) {
    Lanes total[vectors];
    for (int at = 0; at < vectors; at++) total[at] = all(0.0f);
    for (int64_t key = from; key <= last; key++)
        for (int at = 0; at < vectors; at++) total[at] += all(shares[key]) * load(values + key * stride + at * LANES);
    for (int at = 0; at < vectors; at++) store(out + at * LANES, total[at] * all(factor));
}

/* softmax(cap(query . keys * scale)) . values over the keys from..last. keys: (head size, places), so that a vector holds
   one number of several keys and no sum runs across a vector. values: (places, head stride). out: one head, in whole
   lanes. */
static void attend(const float *query, const float *keys, const float *values, int64_t places, int32_t from, int32_t last,
                   int32_t head_size, float scale, float cap, float *scores, float *out) {
    const int32_t stride = whole(head_size, LANES), start = from / LANES * LANES, end = whole(last + 1, LANES);
    int32_t at = start;
    for (; at + 6 * LANES <= end; at += 6 * LANES) score(query, keys + at, places, head_size, scale, 6, scores + at);
    for (; at < end; at += LANES) score(query, keys + at, places, head_size, scale, 1, scores + at);
    for (at = start; cap > 0 && at < end; at += LANES) store(scores + at, capped(load(scores + at), cap));
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

/* Prepares one token for one head of keys and values and for the group of queries that use this head. Queries and key
   are rotated in place, and key and value are written into the cache. */
static void enter(const Model *m, const Block *block, const Cache *cache, int64_t layer, int32_t row, int32_t kv_head,
                  int64_t place, float *heads) {
    const int32_t size = m->head_size, stride = whole(size, LANES), group = m->heads / m->kv_heads;
    const int64_t places = cache->places, at = ((layer * cache->batch + row) * m->kv_heads + kv_head) * stride * places;
    float *key = heads + (m->heads + kv_head) * (int64_t)size, *query = heads + kv_head * group * (int64_t)size;
    if (m->query_key_norm == HEAD) normalise(m, block->key_norm, key, key, size);
    if (block->rotary_size) rotate(block, key, smaller(place, m->context - 1));
    for (int32_t each = 0; each < size; each++) cache->keys[at + each * places + place] = key[each];
    memcpy(cache->values + at + place * stride, key + m->kv_heads * (int64_t)size, size * sizeof(float));
    for (int32_t head = 0; head < group; head++, query += size) {
        if (m->query_key_norm == HEAD) normalise(m, block->query_norm, query, query, size);
        if (block->rotary_size) rotate(block, query, smaller(place, m->context - 1));
    }
}

/* The attention of one token's query over its row of the cache. The result is stored if it may be published. own: the
   thread's working memory. */
static void attention(Share *share, const Model *m, const Block *block, const Cache *cache, int64_t layer, int32_t row,
                      int32_t head, int64_t place, const float *query, float *out, float *own) {
    const int32_t size = m->head_size, stride = whole(size, LANES), kv_head = head / (m->heads / m->kv_heads);
    const int64_t at = ((layer * cache->batch + row) * m->kv_heads + kv_head) * stride * cache->places;
    const int32_t from = block->window && place >= block->window ? place - block->window + 1 : 0;
    attend(query, cache->keys + at, cache->values + at, cache->places, from, place, size, m->attention_scale,
           m->attention_cap, own + stride, own);
    if (publish(share)) memcpy(out, own, size * sizeof(float));
}
