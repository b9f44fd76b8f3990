/* The forward's arguments: the structs that structs.py mirrors. */

#pragma once

#include <stdint.h>

/* R4 to R8: rounded copies for drafts, see integers.h */
enum { FLOAT32, BFLOAT16, F16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K, IQ4_NL, MXFP4, R4, R5, R6, R8, STORAGES };
enum { NONE, GELU_TANH, GELU, RELU, SILU, ACTIVATIONS };
enum { LAYER, RMS, NORMS };
enum { OF_INPUT, OF_OUTPUT, OF_BOTH, OF_SUM, NORMED }; /* x + f(norm(x)), x + norm(f(x)), both, norm(x + f(x)) */
enum { UNNORMED, HEAD, WHOLE, QUERY_KEY_NORMS };       /* queries and keys: each head by itself, all heads as one */

typedef struct { /* an array of `count` floats; NULL: none */
    const float *at;
    int64_t count;
} Floats;

typedef struct { /* x @ weight.T + bias; there may be no bias; it is padded to whole panels */
    const void *weight;
    int64_t bytes; /* of the weight */
    Floats bias;
    int32_t outputs, storage;
} Part;

enum { PARTS = 3 };

typedef struct { /* its outputs are those of its parts in order; unused parts are zeros and come last */
    Part parts[PARTS];
    int32_t inputs, outputs; /* outputs of all parts; 0: the model has no such product */
} Product;

typedef struct {
    Floats weight, bias; /* without a weight there is no norm; without a bias none is added */
} Norm;

typedef struct {
    Norm attention_norm, mlp_norm, attention_out_norm, mlp_out_norm, query_norm, key_norm;
    Floats cosines, sines; /* (context, rotary_size / 2) or none */
    int32_t rotary_size, window, layer; /* layer: of the cache */
    Product query_key_value, attention_out, mlp_in, mlp_out;
} Block;

typedef struct {
    int32_t vocab_size, context, layers, heads, kv_heads, head_size, width, inner;
    int32_t activation, gated, norm, normed, parallel, query_key_norm, position_offset;
    int32_t sound; /* whether sybil_refusal() has accepted the model */
    float epsilon, attention_scale, attention_cap, embedding_scale, residual_scale, logit_divisor, logit_cap;
    const Block *blocks;
    int64_t block_count; /* the layers' number, or less for a draft that leaves layers out */
    Norm final_norm;
    Product token_embedding, head, project_in, project_out; /* the last two may be absent: 0 outputs */
    Floats positions; /* (context + offset, width) or none */
} Model;

typedef struct { /* capacity: tokens of a row; places, head stride: capacity and head size in whole lanes */
    float *keys;    /* (layers, batch, kv_heads, head stride, places) */
    float *values;  /* (layers, batch, kv_heads, places, head stride) */
    int64_t floats; /* of each */
    int32_t batch, capacity, places;
} Cache;
