/* The forward's workers: threads that start when they are first needed and sleep while nothing is computed. One forward
   at a time uses them. If another forward begins meanwhile, only its calling thread computes it, and shares the cores
   with the workers. No forward waits for a worker that wakes too late or can't be started: see stages.h. */

#pragma once

#include <fenv.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "stages.h"

#define STACK (1 << 20)  /* bytes; some systems' default is less than products need */
#define AWAKE 1000000    /* nanoseconds that a worker waits for the next forward before it sleeps */
#define LEAVING 10000    /* nanoseconds that a forward waits at its end for workers to leave */

/* A forward as all its threads see it. job: `bytes` bytes that every worker copies. own: the bytes of each thread's
   working memory. floating: the caller's floating-point mode (denormals as zero, rounding). */
typedef struct {
    void (*work)(const void *job, void *own, Share *share);
    const void *job;
    int64_t bytes, own;
    int32_t threads;
    uint32_t stage;
    fenv_t floating;
} Job;

typedef struct {
    _Alignas(64) _Atomic uint64_t inside; /* the number of the job that the worker looks at; 0: none */
    atomic_int asleep;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
} Worker;

static struct {
    _Alignas(64) _Atomic uint64_t open; /* the number of the job that workers may join; 0: none */
    atomic_int used;
    int32_t workers;
    uint32_t stage;
    uint64_t jobs;
    Job job;
    Worker worker[MOST_THREADS - 1];
} pool;

static int is_news(uint64_t seen) {
    uint64_t open = atomic_load(&pool.open);
    return open && open != seen;
}

static void await(Worker *me, uint64_t seen) {
    for (int64_t began = now(); now() - began < AWAKE; relax())
        if (is_news(seen)) return;
    pthread_mutex_lock(&me->mutex);
    atomic_store(&me->asleep, 1);
    while (!is_news(seen)) pthread_cond_wait(&me->wake, &me->mutex);
    atomic_store(&me->asleep, 0);
    pthread_mutex_unlock(&me->mutex);
}

/* A worker's loop. It copies a job while the job is open, and uses the copy only if the job is still open afterwards. */
static void *serve(void *given) {
    Worker *me = given;
    char *memory = NULL;
    uint64_t seen = 0;
    for (int64_t held = 0;;) {
        await(me, seen);
        seen = atomic_load(&pool.open);
        atomic_store(&me->inside, seen);
        Job job = pool.job;
        atomic_thread_fence(memory_order_seq_cst);
        if (seen && seen == atomic_load(&pool.open) && me - pool.worker < job.threads - 1) {
            const int64_t start = (job.bytes + 63) / 64 * 64, needed = start + (job.own + 63) / 64 * 64;
            if (needed > held) {
                free(memory);
                memory = aligned_alloc(64, needed);
                held = memory ? needed : 0;
            }
            if (memory) memcpy(memory, job.job, job.bytes);
            atomic_thread_fence(memory_order_seq_cst);
            Share share = {.threads = job.threads, .self = 1 + (int32_t)(me - pool.worker), .stage = job.stage};
            fesetenv(&job.floating);
            if (memory && seen == atomic_load(&pool.open)) job.work(memory, memory + start, &share);
        }
        atomic_store(&me->inside, 0);
    }
    return NULL;
}

/* Called in a forked process, which has none of its parent's threads and runs no forward. */
static void forget(void) {
    for (int32_t each = 0; each < pool.workers; each++) atomic_store(&pool.worker[each].inside, 0);
    pool.workers = 0;
    atomic_store(&pool.open, 0);
    atomic_store(&pool.used, 0);
}

/* Starts workers until there are `wanted`, or until the system starts no more. They block all signals, which are left to
   the program's own threads. */
static void start(int32_t wanted) {
    static int told;
    sigset_t every, before;
    pthread_attr_t attributes;
    if (pool.workers >= wanted || pthread_attr_init(&attributes)) return;
    if (!told) told = !pthread_atfork(NULL, NULL, forget);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, STACK);
    sigfillset(&every);
    pthread_sigmask(SIG_SETMASK, &every, &before);
    for (; told && pool.workers < wanted; pool.workers++) {
        pthread_t thread;
        Worker *worker = &pool.worker[pool.workers];
        atomic_store(&worker->asleep, 0);
        pthread_mutex_init(&worker->mutex, NULL);
        pthread_cond_init(&worker->wake, NULL);
        if (pthread_create(&thread, &attributes, serve, worker)) break;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
}

/* Wakes a worker. One that can't be woken at once is about to sleep or to wake; it may miss this job. */
static void wake(Worker *worker) {
    if (!atomic_load(&worker->asleep) || pthread_mutex_trylock(&worker->mutex)) return;
    pthread_cond_signal(&worker->wake);
    pthread_mutex_unlock(&worker->mutex);
}

/* Whether a worker may still read a job's memory. The memory must stay in place as long as this is true. */
int32_t sybil_late(void) {
    for (int32_t each = 0; each < pool.workers; each++)
        if (atomic_load(&pool.worker[each].inside)) return 1;
    return 0;
}

/* Computes a job by this thread and by those workers that are available. own: this thread's working memory. */
static void share_out(const Job *job, void *own) {
    Share alone = {.threads = 1};
    if (job->threads == 1 || atomic_exchange(&pool.used, 1)) {
        job->work(job->job, own, &alone);
        return;
    }
    start(job->threads - 1);
    Share share = {.threads = job->threads, .stage = pool.stage};
    pool.job = *job;
    pool.job.stage = pool.stage;
    fegetenv(&pool.job.floating);
    clear_board(pool.stage + 1, job->threads);
    atomic_store(&pool.open, ++pool.jobs);
    for (int32_t each = 0; each < pool.workers && each < job->threads - 1; each++) wake(&pool.worker[each]);
    job->work(job->job, own, &share);
    atomic_store(&pool.open, 0);
    for (int64_t began = now(); sybil_late() && now() - began < LEAVING;) relax();
    pool.stage = share.stage;
    atomic_store(&pool.used, 0);
}
