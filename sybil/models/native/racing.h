/* Draws tokens by exponential races: the token of a row whose exponential / probability is least wins. The exponentials
   equal those that noise.py computes by numpy, except perhaps the last bit of a logarithm. */

#pragma once

#include "drawing.h"

#define COLUMN 64 /* tokens in a column of a row: c, c + width, c + 2 width, ... */
#define RACE 2    /* the use of these numbers, see Noise.RACE */

static inline uint64_t hashed(uint64_t x) {
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
}

/* The hash key of a position's noise. */
static inline uint64_t key_of(uint64_t seed, int64_t row, int64_t position) {
    return hashed(hashed(seed ^ hashed((uint64_t)row + 1)) ^ hashed((uint64_t)position + 1));
}

static inline uint64_t bits_at(uint64_t key, int64_t index) {
    return hashed(key ^ hashed((uint64_t)index * 3 + RACE + 0x632BE59BD9B4E019u));
}

static inline double exponential_of(uint64_t bits) { return -log(((double)(bits >> 12) + 0.5) * 0x1p-52); }

/* Computes the largest probability of each column. Returns 0 where the row has NaN. */
static int largest_by_column(const float *row, int64_t vocab, int64_t width, float *largest) {
    Ints broken = {0};
    memset(largest, 0, width * sizeof(float));
    for (int64_t first = 0; first < vocab; first += width) {
        const int64_t count = vocab - first < width ? vocab - first : width;
        for (int64_t at = 0; at < count; at += LANES) {
            const Lanes here = lanes_at(row + first, at, count, 0), before = lanes_at(largest, at, width, 0);
            broken |= here != here;
            put_lanes(largest, at, count, choose(here > before, here, before));
        }
    }
    return !any(broken);
}

typedef struct {
    double quotient; /* probability / exponential */
    int64_t token;
} First;

/* The better one of the column's winner and the winner so far. First the column's least exponential is drawn, and the
   token that has it. Every other token's exponential is the least one plus an exponential of its own. */
static First first_of_column(const float *row, int64_t vocab, int64_t width, uint64_t key, int64_t column, First first) {
    const uint64_t bits = bits_at(key, vocab + column);
    const double least = exponential_of(bits) / COLUMN;
    for (int64_t place = 0; place < COLUMN; place++) {
        const int64_t token = place * width + column;
        if (token >= vocab) break;
        if (!(row[token] > 0) || row[token] / least < first.quotient) continue;
        const double more = place == (int64_t)(bits % COLUMN) ? 0 : exponential_of(bits_at(key, token));
        const double quotient = row[token] / (more + least);
        if (quotient > first.quotient || (quotient == first.quotient && token > first.token)) first = (First){quotient, token};
    }
    return first;
}

/* The winning token of one row, or -1 where its numbers are no distribution. A column is searched only where its least
   exponential, with the column's largest probability, could win. */
static int64_t winner(const float *row, int64_t vocab, uint64_t key, double *bounds, float *largest) {
    const int64_t width = (vocab + COLUMN - 1) / COLUMN;
    int64_t best = 0;
    if (!largest_by_column(row, vocab, width, largest)) return -1;
    for (int64_t column = 0; column < width; column++) {
        const double least = largest[column] > 0 ? exponential_of(bits_at(key, vocab + column)) / COLUMN : 1;
        bounds[column] = largest[column] / least;
        if (bounds[column] > bounds[best]) best = column;
    }
    if (!(bounds[best] > 0) || !isfinite(bounds[best])) return -1;
    First first = first_of_column(row, vocab, width, key, best, (First){0, -1});
    for (int64_t column = 0; column < width; column++)
        if (column != best && bounds[column] > 0 && bounds[column] >= first.quotient)
            first = first_of_column(row, vocab, width, key, column, first);
    return first.token;
}

/* tokens (count,): the winners for probs (count, vocab), with the noise of the hashed seed at rows (count,) and positions
   (count,). room: working memory of 12 bytes for each column. */
void sybil_race(int64_t count, int64_t vocab, const float *probs, uint64_t seed, const int64_t *rows,
                const int64_t *positions, int64_t *tokens, void *room) {
    double *bounds = room;
    float *largest = (float *)(bounds + (vocab + COLUMN - 1) / COLUMN);
    for (int64_t at = 0; at < count; at++)
        tokens[at] = winner(probs + at * vocab, vocab, key_of(seed, rows[at], positions[at]), bounds, largest);
}
