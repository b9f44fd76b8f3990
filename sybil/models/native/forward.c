/* The decoder-only forward of operators/transformer.py on a CPU, in one call: see transformer.py beside this file.

   Every sum below is taken in one fixed order, which depends on nothing but the row's own numbers: not on how
   many rows are computed together, nor where a token stands among them, nor on threads or the cache's capacity.
   So a token's logits have the same bits whatever is verified beside it.

   Rows: the batch * count tokens of a call. Everything computed is float32, whatever the weights are stored in. */

#include <sched.h>
#include <stdatomic.h>

#include "attention.h"
#include "products.h"
#include "refusal.h"

int32_t sybil_panel(void) { return PANEL; }
int32_t sybil_lanes(void) { return LANES; }

/* The structs as this compiler lays them out, for structs.py to be held to. */
const int64_t *sybil_sizes(void) {
    static const int64_t sizes[] = {sizeof(Floats), sizeof(Part),  sizeof(Product), sizeof(Norm),
                                    sizeof(Block),  sizeof(Model), sizeof(Cache)};
    return sizes;
}

/* What speaks against a model, or NULL: asked once, before the first forward. */
const char *sybil_refusal(Model *m) {
    const char *refusal = model_refusal(m);
    m->sound = !refusal;
    return refusal;
}

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
        const int32_t panels = panels_of(which, gated), shares = smaller(panels, 8 * threads);    \
        EACH(share, shares, for (int64_t panel = (int64_t)panels * share / shares;                \
                                 panel < (int64_t)panels * (share + 1) / shares; panel++)         \
                              product(which, panel, from, to, residual, rows, activation, gated)) \
    }

/* The first one numbers the threads: OpenMP's own numbers may be another runtime's, where two are loaded. */
static int64_t stages(const Model *m) { return 7 * (int64_t)m->layers + 6; }

static int64_t widest(const Model *m) {
    int64_t most = m->width > m->token_embedding.inputs ? m->width : m->token_embedding.inputs;
    return most > (int64_t)m->heads * m->head_size ? most : (int64_t)m->heads * m->head_size;
}

/* Floats that each thread has for itself: normalised rows; a head; scores. */
static int64_t private(const Model *m, int64_t rows, int64_t capacity) {
    return whole(rows * m->width + whole(m->head_size, LANES) + capacity + 2 * LANES, 16);
}

/* How many floats a forward of so many rows needs to work in; 0 where the numbers are out of range. */
int64_t sybil_scratch(const Model *m, int64_t rows, int64_t capacity, int64_t threads) {
    if (!m->sound || !within(rows, 1, MOST_WIDE) || !within(capacity, 0, MOST_LONG)) return 0;
    if (!within(threads, 1, MOST_THREADS)) return 0;
    int64_t heads = m->heads + 2 * m->kv_heads;
    return 16 * (stages(m) + 1) + rows * (3 * widest(m) + heads * m->head_size + m->inner)
           + threads * private(m, rows, capacity);
}

/* Each thread's own copy, for the product that follows: cheaper than waiting for others to share the work. A thread
   that is late reads what the next stages have written, but finds nothing left to use it for. */
static void norm_rows(const Model *m, Norm norm, const float *x, float *out, int32_t rows) {
    for (int64_t row = 0; row < rows; row++) normalise(m, norm, x + row * m->width, out + row * m->width, m->width);
}

static const char *call_refusal(const Model *m, const Cache *cache, const int64_t *tokens, const int64_t *lengths,
                                int32_t count, const float *scratch, int64_t floats, int32_t threads) {
    NEED(m && m->sound);
    NEED(within(threads, 1, MOST_THREADS));
    const char *refusal = cache_refusal(m, cache, count);
    if (refusal) return refusal;
    NEED(scratch && floats >= sybil_scratch(m, (int64_t)cache->batch * count, cache->capacity, threads));
    return tokens_refusal(m, cache, tokens, lengths, count);
}

/* tokens (batch, count) go in at each row's length; logits (batch * count, vocab), or NULL for a prefill.
   NULL, or what speaks against the call: nothing has been done then. */
const char *sybil_forward(const Model *m, const Cache *cache, const int64_t *tokens, const int64_t *lengths, int32_t count,
                          float *logits, float *scratch, int64_t floats, int32_t threads) {
    const char *refusal = call_refusal(m, cache, tokens, lengths, count, scratch, floats, threads);
    if (refusal) return refusal;
    const int32_t rows = cache->batch * count, width = m->width, embedded = m->token_embedding.inputs;
    const int64_t joined = (int64_t)(m->heads + 2 * m->kv_heads) * m->head_size;
    Stage *const begin = (Stage *)(((uintptr_t)scratch + 63) / 64 * 64);
    float *x = (float *)(begin + stages(m)), *mixed = x + rows * widest(m), *aside = mixed + rows * widest(m);
    float *heads = aside + rows * widest(m), *inner = heads + rows * joined, *privates = inner + (int64_t)rows * m->inner;
    memset(begin, 0, stages(m) * sizeof(Stage));

#pragma omp parallel num_threads(threads)
    {
        float *own = privates + atomic_fetch_add(&begin->taken, 1) * private(m, rows, cache->capacity);
        float *normed = own, *rest = own + (int64_t)rows * width;
        Stage *stage = begin + 1;

        float *first = m->project_in.outputs ? mixed : x;
        EACH(row, rows, unpack(&m->token_embedding, tokens[row], first + (int64_t)row * embedded))
        if (m->project_in.outputs) PRODUCT(&m->project_in, first, x, NULL, NONE, 0)
        if (m->positions.at) EACH(row, rows, {
            int64_t place = lengths[row / count] + row % count;
            const float *learned = m->positions.at + (smaller(place, m->context - 1) + m->position_offset) * (int64_t)width;
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
            if (m->final_norm.weight.at) norm_rows(m, m->final_norm, x, last = normed, rows);
            if (m->project_out.outputs) {
                PRODUCT(&m->project_out, last, mixed, NULL, NONE, 0)
                last = mixed;
            }
            PRODUCT(&m->head, last, logits, NULL, NONE, 0)
        }
    }
    return NULL;
}
