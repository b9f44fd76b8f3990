/* Runs forward.c on models and calls read from stdin, every array in memory of its own: a sanitizer sees each step
   beyond one. What is read here is written by tests/sanitizing.py; what is printed there is read there. */

#include <stdio.h>
#include <stdlib.h>

#include "forward.c"

typedef struct { /* one call: what forward.c is told, and how much memory there really is */
    int64_t cache_floats, told_cache_floats, scratch_floats, told_scratch_floats, logits;
    int64_t lengths, tokens; /* that follow */
    int32_t batch, capacity, places, count, threads, fresh;
} Call;

static void fill(void *to, int64_t bytes) {
    if (bytes && fread(to, bytes, 1, stdin) != 1) exit(3);
}

static int64_t number(void) {
    int64_t value;
    fill(&value, sizeof(value));
    return value;
}

/* Memory of exactly so many bytes, all ones: as a float each four of them are NaN, which spreads where it is read. */
static void *make(int64_t bytes) {
    void *memory = malloc(bytes ? bytes : 1);
    if (!memory) exit(4);
    memset(memory, 0xff, bytes);
    return memory;
}

static void *filled(int64_t bytes) {
    void *memory = make(bytes);
    fill(memory, bytes);
    return memory;
}

/* A pointer comes as the number of its array, from 1, or 0. */
static void *at(const void *number, void **arrays) { return number ? arrays[(intptr_t)number - 1] : NULL; }

static void place_floats(Floats *floats, void **arrays) { floats->at = at(floats->at, arrays); }

static void place_norm(Norm *norm, void **arrays) {
    place_floats(&norm->weight, arrays);
    place_floats(&norm->bias, arrays);
}

static void place_product(Product *product, void **arrays) {
    for (int each = 0; each < PARTS; each++) {
        Part *part = &product->parts[each];
        part->weight = at(part->weight, arrays);
        place_floats(&part->bias, arrays);
    }
}

static void place_block(Block *block, void **arrays) {
    Norm *norms[] = {&block->attention_norm,     &block->mlp_norm,   &block->attention_out_norm,
                     &block->mlp_out_norm, &block->query_norm, &block->key_norm};
    Product *products[] = {&block->query_key_value, &block->attention_out, &block->mlp_in, &block->mlp_out};
    for (int each = 0; each < 6; each++) place_norm(norms[each], arrays);
    for (int each = 0; each < 4; each++) place_product(products[each], arrays);
    place_floats(&block->cosines, arrays);
    place_floats(&block->sines, arrays);
}

static void place_model(Model *m, void **arrays) {
    Product *products[] = {&m->token_embedding, &m->head, &m->project_in, &m->project_out};
    for (int each = 0; each < 4; each++) place_product(products[each], arrays);
    place_floats(&m->positions, arrays);
    place_norm(&m->final_norm, arrays);
}

static void say(const char *refusal, const float *logits, int64_t floats) {
    int64_t size = refusal ? (int64_t)strlen(refusal) : 0, done = refusal ? 0 : floats;
    fwrite(&size, sizeof(size), 1, stdout);
    if (size) fwrite(refusal, 1, size, stdout);
    fwrite(&done, sizeof(done), 1, stdout);
    if (logits && done) fwrite(logits, sizeof(float), done, stdout);
}

int main(void) {
    for (int64_t models = number(); models; models--) {
        int64_t count = number();
        void **arrays = make(count * sizeof(void *));
        for (int64_t each = 0; each < count; each++) arrays[each] = filled(number());
        Model *m = filled(sizeof(Model));
        int64_t blocks = number();
        Block *block = filled(blocks * sizeof(Block));
        for (int64_t each = 0; each < blocks; each++) place_block(&block[each], arrays);
        place_model(m, arrays);
        m->blocks = block;
        say(sybil_refusal(m), NULL, 0);
        float *keys = NULL, *values = NULL;
        for (int64_t calls = number(); calls; calls--) {
            Call call;
            fill(&call, sizeof(call));
            int64_t *lengths = filled(8 * call.lengths), *tokens = filled(8 * call.tokens);
            if (call.fresh) {
                free(keys), free(values);
                keys = make(4 * call.cache_floats), values = make(4 * call.cache_floats);
            }
            float *scratch = make(4 * call.scratch_floats), *logits = call.logits ? make(4 * call.logits) : NULL;
            Cache cache = {keys, values, call.told_cache_floats, call.batch, call.capacity, call.places};
            const char *refusal = sybil_forward(m, &cache, tokens, lengths, call.count, logits, scratch,
                                                call.told_scratch_floats, call.threads);
            say(refusal, logits, call.logits);
            while (sybil_late()) sched_yield(); /* who may still read what is freed here */
            free(lengths), free(tokens), free(scratch), free(logits);
        }
        free(keys), free(values), free(block), free(m);
        for (int64_t each = 0; each < count; each++) free(arrays[each]);
        free(arrays);
    }
    return 0;
}
