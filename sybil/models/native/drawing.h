/* Turns logits into the distributions to sample from, and draws tokens from them: see drawing.py. sybil/filters.py does
   the same by numpy.

   A row's result depends on that row alone. Each sum is over one row, in one fixed order. Sums of runs of tokens are
   added in double precision. */

#pragma once

#include <math.h>
#include <string.h>

#include "lanes.h"

#define RUN 512 /* tokens whose weights are summed and searched together */

typedef double Doubles __attribute__((vector_size(8 * LANES), aligned(8), may_alias));

/* The vector of logits at a place. Places beyond the row's end get the value `filling`. */
static inline Lanes lanes_at(const float *row, int64_t at, int64_t vocab, float filling) {
    if (at + LANES <= vocab) return load(row + at);
    float rest[LANES];
    for (int lane = 0; lane < LANES; lane++) rest[lane] = at + lane < vocab ? row[at + lane] : filling;
    return load(rest);
}

static inline void put_lanes(float *row, int64_t at, int64_t vocab, Lanes lanes) {
    if (at + LANES <= vocab) {
        store(row + at, lanes);
        return;
    }
    float rest[LANES];
    store(rest, lanes);
    for (int lane = 0; at + lane < vocab; lane++) row[at + lane] = rest[lane];
}

static inline int any(Ints mask) {
    uint64_t parts[LANES / 2], found = 0;
    memcpy(parts, &mask, sizeof(parts));
    for (int part = 0; part < LANES / 2; part++) found |= parts[part];
    return found != 0;
}

static inline float largest_of(Lanes lanes) {
    float half[LANES];
    store(half, lanes);
    for (int width = LANES / 2; width; width /= 2)
        for (int lane = 0; lane < width; lane++) half[lane] = half[lane] > half[lane + width] ? half[lane] : half[lane + width];
    return half[0];
}

static inline double sum_doubles(Doubles lanes) {
    double half[LANES];
    memcpy(half, &lanes, sizeof(half));
    for (int width = LANES / 2; width; width /= 2)
        for (int lane = 0; lane < width; lane++) half[lane] += half[lane + width];
    return half[0];
}

/* ---- which tokens are kept ---- */

/* A token and its weight. Between equal logits, the later token's counts as the larger one. */
typedef struct {
    float logit, weight;
    int32_t token;
} Candidate;

static inline int exceeds(Candidate one, Candidate other) {
    return one.logit > other.logit || (one.logit == other.logit && one.token > other.token);
}

static Candidate median(Candidate a, Candidate b, Candidate c) {
    if (exceeds(b, a)) return exceeds(c, b) ? b : exceeds(c, a) ? c : a;
    return exceeds(c, a) ? a : exceeds(c, b) ? c : b;
}

/* Moves the largest candidates to the front by quickselect: every candidate for which the candidates above it weigh less
   than `wanted` in total. Returns their number. The last of them is the smallest. */
static int64_t to_front(Candidate *some, int64_t count, double wanted) {
    int64_t kept = 0;
    double above = 0;
    while (count > 1) {
        const Candidate pivot = median(some[0], some[count / 2], some[count - 1]);
        int64_t larger = 0, place = 0; /* candidates larger than the pivot, then the pivot */
        double heavier = 0;
        for (int64_t at = 0; at < count; at++) {
            const Candidate here = some[at];
            if (exceeds(pivot, here)) continue;
            if (here.token == pivot.token) place = larger;
            else heavier += here.weight;
            some[at] = some[larger];
            some[larger++] = here;
        }
        some[place] = some[--larger];
        some[larger] = pivot;
        if (larger && above + heavier >= wanted) {
            count = larger;
            continue;
        }
        above += heavier + pivot.weight;
        kept += larger + 1;
        some += larger + 1;
        count -= larger + 1;
        if (above >= wanted) return kept;
    }
    return kept + count;
}

/* The k-th largest logit. Runs of tokens are ordered by their largest logits, and only the first k runs are searched. */
static float kth_largest(const float *logits, int64_t vocab, int64_t k, Candidate *some) {
    enum { SHORT = 64 };
    int64_t runs = 0, count = 0;
    for (int64_t first = 0; first < vocab; first += SHORT, runs++) {
        Lanes largest = all(-INFINITY);
        for (int64_t at = first; at < first + SHORT && at < vocab; at += LANES) {
            const Lanes here = lanes_at(logits, at, vocab, -INFINITY);
            largest = choose(here > largest, here, largest);
        }
        some[runs] = (Candidate){largest_of(largest), 1, (int32_t)runs};
    }
    Candidate *tokens = some + runs;
    const int64_t looked_at = to_front(some, runs, (double)k);
    for (int64_t run = 0; run < looked_at; run++)
        for (int64_t token = (int64_t)some[run].token * SHORT, end = token + SHORT; token < end && token < vocab; token++)
            tokens[count++] = (Candidate){logits[token], 1, (int32_t)token};
    return tokens[to_front(tokens, count, (double)k) - 1].logit;
}

/* How a row's logits become weights: e^((logit - most) / temperature), and 0 below the logit `least`. */
typedef struct {
    const float *logits;
    int64_t vocab;
    float most, least, factor, rest; /* factor + rest: 1 / temperature, as exact as a division */
} Row;

/* The least weight of a share of the whole. It is at most 1, the weight of the likeliest token. */
static float floor_of(double share, double whole) { return (float)fmin(share * fmax(whole, 1), 1); }

#define LIGHTEST 1e-38f /* no weight is less, except 0 */

/* Computes the weights of a run. Returns their sum; the largest weight is in one of the lanes of `largest`. */
static double weigh(const Row *row, int64_t first, float *weights, Lanes *largest) {
    const Lanes most = all(row->most), least = all(row->least), factor = all(row->factor), rest = all(row->rest);
    const int64_t count = row->vocab - first < RUN ? row->vocab - first : RUN;
    Lanes mass = {0}, heaviest = {0};
    for (int64_t at = 0; at < count; at += LANES) {
        const Lanes logit = lanes_at(row->logits + first, at, count, -INFINITY), away = logit - most;
        const Lanes power = away * factor + away * rest; /* infinity - infinity is NaN */
        const Ints stays = (logit >= least) & (power >= all(-87.0f)); /* weights below e^-87 count as 0 */
        const Lanes weight = choose(stays, exponential(power), all(0));
        put_lanes(weights, at, count, weight);
        heaviest = choose(weight > heaviest, weight, heaviest);
        mass += weight;
    }
    *largest = heaviest;
    return sum(mass);
}

/* Finds the tokens that weigh at least `least` and a share of the whole. gathered: their weight; whole: all tokens'. */
static int64_t gather(const Row *row, double share, float least, double *gathered, double *whole, Candidate *found) {
    int64_t count = 0, kept = 0;
    *whole = *gathered = 0;
    for (int64_t first = 0; first < row->vocab; first += RUN) {
        float weights[RUN];
        Lanes largest;
        *whole += weigh(row, first, weights, &largest);
        const float floor = fmaxf(least, floor_of(share, *whole)); /* the sum so far is a lower bound */
        if (!any(largest >= all(floor))) continue;
        const int64_t here = row->vocab - first < RUN ? row->vocab - first : RUN;
        for (int64_t at = 0; at < here; at += LANES) {
            if (!any(lanes_at(weights, at, here, -1) >= all(floor))) continue;
            for (int64_t each = at; each < at + LANES && each < here; each++) { /* the next one overwrites this one unless it counts */
                found[count] = (Candidate){row->logits[first + each], weights[each], (int32_t)(first + each)};
                count += weights[each] >= floor;
            }
        }
    }
    const float floor = fmaxf(least, floor_of(share, *whole));
    for (int64_t each = 0; each < count; each++) {
        const Candidate here = found[each];
        found[kept] = here;
        kept += here.weight >= floor;
        *gathered += here.weight >= floor ? here.weight : 0;
    }
    return kept;
}

/* Moves the candidates that top-p keeps to the front. Returns their number. Sums over buckets of logits tell which
   bucket has the last candidate. */
static int64_t nucleus(const Row *row, Candidate *some, int64_t count, double wanted) {
    enum { BUCKETS = 1024, A_NAT = 16 };
    double sums[BUCKETS] = {0}, above = 0;
    int64_t bucket = 0, kept = 0, border = 0;
#define BUCKET_OF(each) (int64_t) fminf((row->most - (each).logit) * row->factor * A_NAT, BUCKETS - 1)
    for (int64_t each = 0; each < count; each++) sums[BUCKET_OF(some[each])] += some[each].weight;
    while (bucket < BUCKETS - 1 && above + sums[bucket] < wanted) above += sums[bucket++];
    for (int64_t each = 0; each < count; each++) { /* candidates before the bucket, then those in it */
        const Candidate here = some[each];
        const int64_t its = BUCKET_OF(here);
        some[each] = some[border];
        some[border] = some[kept];
        some[its < bucket ? kept : border] = here;
        kept += its < bucket;
        border += its <= bucket;
    }
#undef BUCKET_OF
    return kept + to_front(some + kept, border - kept, wanted - above);
}

/* Puts the tokens that the filters keep at the front, as candidates, and returns their number. Tokens that each weigh
   less than (1 - top_p) / vocab of the whole weigh less than 1 - top_p of it together, so none of them is kept. Usually
   16 times that limit can be used, and fewer tokens are looked at. */
static int64_t filtered(const Row *row, double top_p, float min_p, Candidate *some) {
    int64_t count = 0, kept = 0;
    double whole, gathered;
    if (top_p < 1) {
        const double share = (1 - top_p) / (double)row->vocab;
        count = gather(row, 16 * share, LIGHTEST, &gathered, &whole, some);
        if (gathered < top_p * whole) count = gather(row, share, LIGHTEST, &gathered, &whole, some);
        count = nucleus(row, some, count, top_p * whole);
    } else count = gather(row, 0, fmaxf(LIGHTEST, min_p), &gathered, &whole, some);
    for (int64_t each = 0; each < count; each++)
        if (some[each].weight >= min_p) some[kept++] = some[each];
    return kept;
}

/* sybil_distribute() for one row. */
static void distribute(const float *logits, int64_t vocab, float temperature, int64_t top_k, double top_p, float min_p,
                       float *probs, Candidate *some) {
    Lanes largest = all(-INFINITY);
    Ints broken = {0};
    for (int64_t at = 0; at < vocab; at += LANES) {
        const Lanes here = lanes_at(logits, at, vocab, -INFINITY);
        largest = choose(here > largest, here, largest);
        broken |= here != here;
    }
    const float most = largest_of(largest), factor = (float)(1.0 / temperature);
    if (any(broken) || !isfinite(most)) {
        for (int64_t token = 0; token < vocab; token++) probs[token] = NAN;
        return;
    }
    const float least = top_k ? kth_largest(logits, vocab, top_k, some) : -INFINITY;
    const Row row = {logits, vocab, most, least, factor, (float)(1.0 / temperature - factor)};
    double whole = 0;
    if (top_k || top_p < 1 || min_p > 0) {
        const int64_t kept = filtered(&row, top_p, min_p, some);
        for (int64_t each = 0; each < kept; each++) whole += some[each].weight;
        memset(probs, 0, vocab * sizeof(float));
        for (int64_t each = 0; each < kept; each++) probs[some[each].token] = (float)(some[each].weight / whole);
        return;
    }
    for (int64_t first = 0; first < vocab; first += RUN) whole += weigh(&row, first, probs + first, &largest);
    for (int64_t at = 0; at < vocab; at += LANES)
        put_lanes(probs, at, vocab, lanes_at(probs, at, vocab, 0) * all((float)(1.0 / whole)));
}

/* logits (rows, vocab) -> probs (rows, vocab). some: room for one candidate for each token and one for every 64 tokens.
   temperature is above 0; top_k 0, top_p 1 and min_p 0 switch their filters off. A row with NaN, with +inf or without a
   finite entry becomes NaN. */
void sybil_distribute(const float *logits, int64_t rows, int64_t vocab, float temperature, int64_t top_k, double top_p,
                      float min_p, float *probs, void *some) {
    for (int64_t row = 0; row < rows; row++, logits += vocab, probs += vocab)
        distribute(logits, vocab, temperature, top_k < vocab ? top_k : 0, top_p, min_p, probs, some);
}

/* ---- draws ---- */

/* The residual max(weight * target - draft, 0) of one row. draft: NULL for none; a value that isn't above 0, NaN
   included, subtracts nothing. without: a token that gets 0, or -1 for none. */
typedef struct {
    const float *target, *draft;
    float weight;
    int64_t without, vocab;
} Rest;

static inline Lanes rest_at(const Rest *of, int64_t at) {
    Lanes left = lanes_at(of->target, at, of->vocab, 0) * all(of->weight);
    if (of->draft) {
        const Lanes draft = lanes_at(of->draft, at, of->vocab, 0);
        left -= choose(draft > all(0), draft, all(0));
    }
    left = choose(left < all(0), all(0), left); /* NaN stays */
    if (of->without >= at && of->without < at + LANES) left[of->without - at] = 0;
    return left;
}

static double run_sum(const Rest *of, int64_t first) {
    Doubles sum = {0};
    for (int64_t at = first; at < first + RUN && at < of->vocab; at += LANES) sum += __builtin_convertvector(rest_at(of, at), Doubles);
    return sum_doubles(sum);
}

static double rest_sum(const Rest *of) {
    double sum = 0;
    for (int64_t first = 0; first < of->vocab; first += RUN) sum += run_sum(of, first);
    return sum;
}

/* Draws by the inverse of the cumulative distribution. The sums of runs tell which run has the token. */
static int64_t drawn(const Rest *of, double sum, double uniform) {
    const double point = uniform * sum;
    double below = 0;
    int64_t last = -1;
    for (int64_t first = 0; first < of->vocab; first += RUN) {
        const double above = below + run_sum(of, first);
        if (above > point)
            for (int64_t at = first; at < first + RUN && at < of->vocab; at += LANES) {
                const Lanes left = rest_at(of, at);
                for (int lane = 0; lane < LANES; lane++) {
                    if (!(left[lane] > 0)) continue;
                    last = at + lane;
                    below += left[lane];
                    if (below > point) return last;
                }
            }
        if (last >= 0) return last; /* the run's sum was larger by rounding only */
        below = above;
    }
    return -1;
}

/* The residual of one row: weights[row] * targets[at[row]] minus drafts[drafted[row]], which are rows of vocab numbers.
   at: NULL for all rows in order. drafted: -1 for no draft. */
static Rest rest_of(int64_t row, int64_t vocab, const float *targets, const int64_t *at, const float *drafts,
                    const int64_t *drafted, const int64_t *without, const float *weights) {
    const float *draft = drafts && drafted[row] >= 0 ? drafts + drafted[row] * vocab : NULL;
    return (Rest){targets + (at ? at[row] : row) * vocab, draft, weights ? weights[row] : 1, without ? without[row] : -1, vocab};
}

/* sums (rows,) of max(weight * target - draft, 0). drafts, without, weights: NULL for none. */
void sybil_rest(int64_t rows, int64_t vocab, const float *targets, const int64_t *at, const float *drafts,
                const int64_t *drafted, const int64_t *without, const float *weights, double *sums) {
    for (int64_t row = 0; row < rows; row++) {
        const Rest of = rest_of(row, vocab, targets, at, drafts, drafted, without, weights);
        sums[row] = rest_sum(&of);
    }
}

/* Draws tokens (rows,) from norm(max(weight * target - draft, 0)) by uniforms in [0, 1). Where the residual is zero, the
   token is drawn from the target; it is -1 where the target is no distribution either. */
void sybil_draw(int64_t rows, int64_t vocab, const float *targets, const int64_t *at, const float *drafts,
                const int64_t *drafted, const int64_t *without, const float *weights, const double *uniforms, int64_t *tokens) {
    for (int64_t row = 0; row < rows; row++) {
        Rest of = rest_of(row, vocab, targets, at, drafts, drafted, without, weights);
        double sum = rest_sum(&of);
        if (!(sum > 0)) {
            of = (Rest){of.target, NULL, 1, -1, vocab};
            sum = rest_sum(&of);
        }
        tokens[row] = sum > 0 ? drawn(&of, sum, uniforms[row]) : -1;
    }
}
