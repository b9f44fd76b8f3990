/* What the forward is given: the structs that library.py mirrors. */

#pragma once

#include <stdint.h>

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
