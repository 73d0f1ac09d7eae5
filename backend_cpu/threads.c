/* One pool of threads that walk a step together.
 *
 * A step is one region: the caller publishes a body, all threads run it, and inside it they meet at barriers, one after each
 * kernel or so. Both must cost little beside a kernel of some microseconds, so that waiting is spinning on a word that one
 * thread writes; only who has waited for long sleeps in the kernel (futex), and is woken by a system call that nobody makes
 * while all are awake.
 *
 * The barrier is central: threads count themselves in, and the last one moves `phase` on, for which the others wait. It needs
 * no thread-local sense, as `phase` counts: a thread knows the value that it waits to be left, because the phase cannot move
 * before it has arrived. The end of a region is the same barrier with one difference: workers arrive and do not wait, but go
 * to wait for the next region.
 *
 * Spinning where there are fewer CPUs than threads would keep the awaited one from running; there threads sleep at once.
 *
 * After fork the child has only the thread that forked. Its first region starts new workers; freeing the pool joins nothing. */
#include "backend_cpu/runtime.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

/* How long to spin before sleeping. A sleep and its wake-up cost some 50 us on a virtual machine, and the host part of a
 * training step (log line, next batch) is below this. Before that, how long to spin without letting others run: where another process
 * computes, the awaited thread may be waiting for this very CPU. */
enum { SPIN_NS = 1000000, SPIN_ALONE_NS = 50000, SPINS_BETWEEN_CLOCKS = 256 };

typedef struct { cpu_pool *pool; int index, cpu; pthread_t thread; } worker;         /* cpu: where it is pinned; -1: nowhere */

struct cpu_pool {
    /* Written at the start of a region, read by all. */
    _Alignas(64) atomic_uint region;         /* counts regions begun; workers wait for it to move */
    cpu_body *body;                          /* NULL: workers end */
    void *context;
    unsigned float_mode;                     /* the caller's, for the workers */
    int callers_cpu;                         /* where it was as the region began */

    _Alignas(64) atomic_uint arrived;        /* threads at the barrier, but for the last one of a phase, which sets it to 0 */
    _Alignas(64) atomic_uint phase;          /* counts barriers passed */
    _Alignas(64) atomic_uint region_sleepers;
    atomic_uint phase_sleepers;
    atomic_bool busy;                        /* a region runs */

    _Alignas(64) int n;                      /* never written while regions run, as all below but free_cpu */
    bool spin;
    int free_cpu;                            /* where no worker is pinned; -1: none is anywhere */
    unsigned forks;                          /* value of `forks` when the workers were started */
    worker *workers;                         /* n - 1 of them; [0] is thread 1 */
};

/* -- the floating-point mode ------------------------------------------------------------------------------------------ */

/* Rounding and denormals, the control half of MXCSR (its low six bits are flags of what has happened). A library that sets
 * flush-to-zero on the calling thread alone would else let bits depend on which thread took a row. Elsewhere than on x86
 * threads inherit the mode when the pool is made. */
static unsigned float_mode(void)
{
#if defined(__x86_64__)
    return _mm_getcsr() & ~0x3fu;
#else
    return 0;
#endif
}

static void set_float_mode(unsigned mode)
{
#if defined(__x86_64__)
    if (float_mode() != mode)
        _mm_setcsr(mode);
#else
    (void)mode;
#endif
}

/* -- waiting ---------------------------------------------------------------------------------------------------------- */

static void pause_cpu(void)
{
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");    /* yield is a no-op on most cores; isb waits some 10 ns */
#endif
}

static bool spin_while(atomic_uint *word, unsigned old)
{
    int64_t start = 0;
    for (;;) {
        for (int i = 0; i < SPINS_BETWEEN_CLOCKS; i++) {
            if (atomic_load_explicit(word, memory_order_acquire) != old)
                return true;
            pause_cpu();
        }
        int64_t now = base_now_ns();
        if (start == 0)
            start = now;
        else if (now - start > SPIN_NS)
            return false;
        else if (now - start > SPIN_ALONE_NS)
            sched_yield();
    }
}

/* Returns when word is no longer old. Nobody sleeps through a move: the mover writes word and then reads sleepers, the
 * sleeper writes sleepers and then (in the kernel) reads word, all in one total order, so that one of them sees the other. */
static void wait_while(atomic_uint *word, unsigned old, atomic_uint *sleepers, bool spin)
{
    if (spin && spin_while(word, old))
        return;
    if (atomic_load_explicit(word, memory_order_acquire) != old)
        return;
    atomic_fetch_add(sleepers, 1);
    while (atomic_load(word) == old)
        syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, old, NULL, NULL, 0);
    atomic_fetch_sub(sleepers, 1);
}

static void move_on(atomic_uint *word, atomic_uint *sleepers)
{
    atomic_fetch_add(word, 1);
    if (atomic_load(sleepers) > 0)
        syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

/* -- barriers and regions --------------------------------------------------------------------------------------------- */

/* True for the last of the phase, which opens it. */
static bool arrive(cpu_pool *pool)
{
    if (atomic_fetch_add_explicit(&pool->arrived, 1, memory_order_acq_rel) + 1 < (unsigned)pool->n)
        return false;
    atomic_store_explicit(&pool->arrived, 0, memory_order_relaxed);        /* seen by all before the phase that follows */
    move_on(&pool->phase, &pool->phase_sleepers);
    return true;
}

void cpu_barrier(cpu_pool *pool)
{
    if (pool->n == 1)
        return;
    unsigned phase = atomic_load_explicit(&pool->phase, memory_order_relaxed);
    if (!arrive(pool))
        wait_while(&pool->phase, phase, &pool->phase_sleepers, pool->spin);
}

static bool pin(worker *w, int cpu)
{
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    return pthread_setaffinity_np(w->thread, sizeof one, &one) == 0;
}

/* Where other processes compute too, the scheduler may put the calling thread on a worker's CPU, and it finds no way back: the
 * worker cannot leave, and the other CPU is not idle. Both would take turns there, one waiting for the other after each kernel. So the
 * worker goes, to the CPU that the caller has left. One at most does: no two are pinned to the same. */
static void make_way(worker *self)
{
    cpu_pool *pool = self->pool;
    if (self->cpu < 0 || self->cpu != pool->callers_cpu || !pin(self, pool->free_cpu))
        return;
    int before = self->cpu;
    self->cpu = pool->free_cpu;
    pool->free_cpu = before;
}

static void *worker_main(void *argument)
{
    worker *self = argument;
    cpu_pool *pool = self->pool;

    for (unsigned region = 0;; region++) {
        wait_while(&pool->region, region, &pool->region_sleepers, pool->spin);
        if (!pool->body)
            return NULL;
        make_way(self);
        set_float_mode(pool->float_mode);
        pool->body(pool->context, self->index, pool->n);
        arrive(pool);
    }
}

/* -- the life of a pool ----------------------------------------------------------------------------------------------- */

static atomic_uint forks;                    /* forks on the way from the first process that made a pool to this one */

static void count_fork(void) { atomic_fetch_add(&forks, 1); }
static void watch_forks(void) { pthread_atfork(NULL, NULL, count_fork); }

/* The i-th CPU of the process's, other than the one that the caller is on; -1 where there is none. */
static int cpu_for_worker(const cpu_set_t *usable, int callers, int i)
{
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, usable) && cpu != callers && i-- == 0)
            return cpu;
    return -1;
}

/* Workers are pinned where threads and CPUs are as many, so that two never meet on one; with fewer threads, or a quota, two
 * processes would choose the same CPUs. The calling thread stays as it is: it belongs to the user, and threads that it makes
 * would inherit its one CPU. The scheduler finds it the CPU that is left. */
static void pin_workers(cpu_pool *pool)
{
    cpu_set_t usable;
    if (!pool->spin || sched_getaffinity(0, sizeof usable, &usable) != 0 || CPU_COUNT(&usable) != pool->n)
        return;
    int callers = sched_getcpu();
    for (int i = 0; i < pool->n - 1; i++) {
        int cpu = cpu_for_worker(&usable, callers, i);
        if (cpu < 0)
            return;
        if (pin(&pool->workers[i], cpu))                                     /* a refusal costs speed alone */
            pool->workers[i].cpu = cpu;
    }
    pool->free_cpu = callers;
}

/* Ends and joins the first `count` workers. */
static void stop_workers(cpu_pool *pool, int count)
{
    pool->body = NULL;
    move_on(&pool->region, &pool->region_sleepers);
    for (int i = 0; i < count; i++)
        pthread_join(pool->workers[i].thread, NULL);
}

/* any: fewer than pool->n will do, and that is then their number. */
static bool start_workers(cpu_pool *pool, bool any)
{
    static const int own_signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGSYS};
    sigset_t others, before;

    atomic_store(&pool->region, 0);
    atomic_store(&pool->arrived, 0);
    atomic_store(&pool->phase, 0);
    atomic_store(&pool->region_sleepers, 0);
    atomic_store(&pool->phase_sleepers, 0);
    pool->forks = atomic_load(&forks);

    /* Signals are the user's threads', but for those that a worker itself brings about: blocked, they would end the process past
     * any handler of the user's, or of a sanitizer's. */
    sigfillset(&others);
    for (size_t i = 0; i < COUNT_OF(own_signals); i++)
        sigdelset(&others, own_signals[i]);
    pthread_sigmask(SIG_SETMASK, &others, &before);
    int started = 0, status = 0;
    while (started < pool->n - 1) {
        worker *w = &pool->workers[started];
        char name[16];
        *w = (worker){ .pool = pool, .index = started + 1, .cpu = -1 };
        status = pthread_create(&w->thread, NULL, worker_main, w);
        if (status != 0)
            break;
        snprintf(name, sizeof name, "rax-%d", started + 1);
        pthread_setname_np(w->thread, name);
        started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (status != 0 && any) {
        pool->n = started + 1;
    } else if (status != 0) {
        stop_workers(pool, started);
        return base_fail(BASE_FAILURE, "threads: the system gives %d of the %d asked for: %s", started + 1, pool->n,
                         strerror(status));
    }
    pin_workers(pool);
    return true;
}

cpu_pool *cpu_pool_new(int threads)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch_forks);

    cpu_pool *pool = base_alloc(sizeof *pool);
    int cpus = base_usable_cpus();
    pool->n = threads > 0 ? threads : cpus;
    pool->spin = pool->n <= cpus;
    pool->workers = base_alloc(sizeof(worker) * (size_t)MAX(pool->n - 1, 1));
    if (start_workers(pool, threads == 0))
        return pool;
    base_free(pool->workers);
    base_free(pool);
    return NULL;
}

void cpu_pool_free(cpu_pool *pool)
{
    if (!pool)
        return;
    if (pool->forks == atomic_load(&forks))
        stop_workers(pool, pool->n - 1);
    base_free(pool->workers);
    base_free(pool);
}

int cpu_pool_threads(const cpu_pool *pool) { return pool->n; }

void cpu_pool_run(cpu_pool *pool, cpu_body *body, void *context)
{
    CHECK(body, "a region needs a body");
    CHECK(!atomic_exchange_explicit(&pool->busy, true, memory_order_acquire),
          "expected one region at a time, got another inside it or from another thread");
    if (pool->n > 1 && pool->forks != atomic_load_explicit(&forks, memory_order_relaxed) && !start_workers(pool, false)) {
        fprintf(stderr, "rax: after fork: %s\n", base_error());
        exit(BASE_FAILURE);
    }
    if (pool->n > 1) {
        pool->body = body;
        pool->context = context;
        pool->float_mode = float_mode();
        pool->callers_cpu = sched_getcpu();
        move_on(&pool->region, &pool->region_sleepers);
    }
    body(context, 0, pool->n);
    cpu_barrier(pool);
    atomic_store_explicit(&pool->busy, false, memory_order_release);
}
