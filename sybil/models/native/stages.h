/* How threads share a forward. A forward is a sequence of stages. The items of a stage are computed in parts, and a
   thread takes the next part when it is ready for one. An item is computed in the thread's own memory and then
   published: one thread wins the right to store it, and the items of a part are stored in order.

   No thread waits for a thread that the system has preempted. If a thread finds no part left and sees that a part makes
   no progress, it computes that part's next items itself. When the preempted thread goes on, later stages may have
   overwritten its inputs. What it computes from them is never stored, because it can't publish an item that another
   thread has published. */

#pragma once

#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <time.h>

#define PARTS_EACH 4     /* of a stage, for each thread */
#define MOST_PARTS 1024  /* of a stage */
#define MOST_THREADS (1 << 10)
#define PATIENCE 50000   /* nanoseconds that a part may make no progress before others take it over */

typedef struct { /* a stage's number in the upper 32 bits, a count in that stage in the lower 32 */
    _Alignas(128) _Atomic uint64_t at; /* two cache lines, because processors fetch them in pairs */
} Count;

/* The state of the forward that the pool computes. taken: for each thread, how many of its own parts have been taken; a
   thread takes its own parts first, so that their counts stay in its cache. parts: for each part, twice the number of
   stored items, and 1 more while the next item is being stored. */
static struct {
    Count done, taken[MOST_THREADS], parts[MOST_PARTS];
} board;

typedef struct { /* what one thread works on */
    int32_t threads; /* how many compute the forward; with 1 thread the board isn't used */
    int32_t self;    /* this thread's number among them */
    uint32_t stage;
    int64_t items, parts, part, item;
    int64_t found; /* the part's count when this thread began the item */
    int64_t finished; /* finished parts that aren't counted yet */
    int storing;
} Share;

static inline int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
    __asm__ volatile("yield");
#endif
}

static inline uint64_t counted(uint32_t stage, int64_t count) { return ((uint64_t)stage << 32) + (uint64_t)count; }

/* The count of a stage. It is below 0 while an earlier stage is counted, and above 2^31 when a later one is. */
static inline int64_t reached(Count *count, uint32_t stage) {
    return (int64_t)(atomic_load_explicit(&count->at, memory_order_acquire) - counted(stage, 0));
}

static inline int advance(Count *count, uint32_t stage, int64_t from, int64_t to) {
    uint64_t expected = counted(stage, from);
    return atomic_compare_exchange_strong(&count->at, &expected, counted(stage, to));
}

/* Adds to a count, and returns what it was before; -1 where it was `most` already. The first exchange guesses that the
   count is 0. Even a wrong guess fetches the cache line for writing; a read first would fetch it once, and the write a
   second time. */
static int64_t add(Count *count, uint32_t stage, int64_t many, int64_t most) {
    uint64_t found = counted(stage, 0);
    for (;;) {
        int64_t from = (int64_t)(found - counted(stage, 0)), before = from < 0 ? 0 : from;
        if (before >= most) return -1;
        if (atomic_compare_exchange_strong(&count->at, &found, counted(stage, before + many))) return before;
    }
}

/* Prepares the board for a forward that begins with this stage; counts of earlier stages become outdated. */
static void clear_board(uint32_t stage, int32_t threads) {
    atomic_store(&board.done.at, counted(stage, 0));
    for (int32_t thread = 0; thread < threads; thread++) atomic_store(&board.taken[thread].at, counted(stage, 0));
    for (int64_t part = 0; part < MOST_PARTS && part < (int64_t)PARTS_EACH * threads; part++)
        atomic_store(&board.parts[part].at, counted(stage, 0));
}

static inline int64_t first_of(const Share *share, int64_t part) { return share->items * part / share->parts; }

/* A part that makes no progress; -1 when all parts are done. Reading another thread's counts slows that thread down, so
   they are read only when the stage has taken long. */
static int64_t late_part(Share *share) {
    if (share->finished) add(&board.done, share->stage, share->finished, share->parts);
    share->finished = 0;
    int64_t part = 0, seen = -1, since = 0;
    for (int spins = 1; reached(&board.done, share->stage) < share->parts; spins++, relax()) {
        if (spins % 64) continue;
        if (!since) since = now();
        else if (now() - since > PATIENCE) break;
    }
    since = now();
    while (part < share->parts && reached(&board.done, share->stage) < share->parts) {
        int64_t count = reached(&board.parts[part], share->stage);
        if (count >= 2 * (first_of(share, part + 1) - first_of(share, part))) part++;
        else if (count != seen) seen = count, since = now();
        else if (now() - since > PATIENCE) return part;
        relax();
    }
    return -1;
}

/* A part that no thread has taken yet, this thread's own parts first; -1 when there is none. */
static int64_t take(const Share *share) {
    for (int32_t each = 0; each < share->threads; each++) {
        const int64_t owner = (share->self + each) % share->threads;
        const int64_t first = share->parts * owner / share->threads, last = share->parts * (owner + 1) / share->threads;
        if (each && reached(&board.taken[owner], share->stage) >= last - first) continue;
        const int64_t part = add(&board.taken[owner], share->stage, 1, last - first);
        if (part >= 0) return first + part;
    }
    return -1;
}

static void begin_stage(Share *share, int64_t items) {
    int64_t most = (int64_t)PARTS_EACH * share->threads < MOST_PARTS ? (int64_t)PARTS_EACH * share->threads : MOST_PARTS;
    share->items = items;
    share->parts = items < most ? items : most;
    share->part = share->item = -1;
    share->finished = 0;
    share->stage++;
}

/* Marks the item that this thread has published as stored. */
static void end_item(Share *share) {
    share->storing = 0;
    Count *count = &board.parts[share->part];
    atomic_store_explicit(&count->at, counted(share->stage, 2 * (share->item - first_of(share, share->part) + 1)),
                          memory_order_release);
    if (share->item + 1 == first_of(share, share->part + 1)) share->finished++;
}

/* The item that this thread computes next; -1 when all items of the stage are stored. */
static int64_t next_item(Share *share) {
    if (share->threads == 1) return ++share->item < share->items ? share->item : -1;
    if (share->storing) end_item(share);
    for (;;) {
        if (share->part < 0) share->part = take(share);
        if (share->part < 0) share->part = late_part(share);
        if (share->part < 0) return -1;
        int64_t found = reached(&board.parts[share->part], share->stage), stored = found < 0 ? 0 : found / 2;
        share->found = found;
        share->item = first_of(share, share->part) + stored;
        if (share->item >= first_of(share, share->part + 1)) share->part = -1;
        else if (found > 0 && found % 2) sched_yield(); /* another thread is storing it */
        else return share->item;
    }
}

/* Whether this thread may store its item. Only one thread gets true for an item. */
static inline int publish(Share *share) {
    if (share->threads == 1) return 1;
    int64_t stored = share->found < 0 ? 0 : share->found;
    return share->storing = advance(&board.parts[share->part], share->stage, share->found, stored + 1);
}

/* A loop over the items of a stage. Its body computes one item, and stores it if publish() allows that. */
#define EACH(item, all_items, ...)                                                            \
    {                                                                                        \
        begin_stage(share, all_items);                                                        \
        for (int64_t item; (item = next_item(share)) >= 0;) { __VA_ARGS__; }                  \
    }
