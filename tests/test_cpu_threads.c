/* The pool: each thread once, barriers, shared tasks, sleep, fork, and the caller's CPU and float mode.
 * One test alone: build/tests/test_cpu_threads 'threads_wake*' */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "backend_cpu/runtime.h"
#include "tests/scratch.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#if defined(__SANITIZE_THREAD__)
#define UNDER_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define UNDER_TSAN 1
#endif
#endif
#ifndef UNDER_TSAN
#define UNDER_TSAN 0
#endif

static const int team_sizes[] = {1, 2, 3, 7};
enum { MOST_THREADS = 7 };

typedef struct { cpu_pool *pool; int ran[MOST_THREADS], n; } roll;

static void call_roll(void *context, int thread, int n)
{
    roll *r = context;
    r->ran[thread]++;
    if (thread == 0)
        r->n = n;
}

static void threads_run_each_once(void **state)
{
    (void)state;
    for (size_t s = 0; s < COUNT_OF(team_sizes); s++) {
        int n = team_sizes[s];
        roll r = { .pool = cpu_pool_new(n) };
        assert_non_null(r.pool);
        assert_int_equal(cpu_pool_threads(r.pool), n);
        for (int i = 0; i < 300; i++)
            cpu_pool_run(r.pool, call_roll, &r);
        assert_int_equal(r.n, n);
        for (int t = 0; t < MOST_THREADS; t++)
            assert_int_equal(r.ran[t], t < n ? 300 : 0);
        cpu_pool_free(r.pool);
    }
    cpu_pool *all = cpu_pool_new(0);
    assert_int_equal(cpu_pool_threads(all), base_usable_cpus());
    cpu_pool_free(all);
    cpu_pool_free(NULL);
}

/* No system has room for such stacks. Who asked for as many threads as there are gets one, who asked for three is told. */
static void threads_that_the_system_refuses(void **state)
{
    (void)state;
    pthread_attr_t before, greedy;
    assert_int_equal(pthread_getattr_default_np(&before), 0);
    pthread_attr_init(&greedy);
    pthread_attr_setstacksize(&greedy, (size_t)1 << 47);
    if (base_usable_cpus() == 1 || pthread_setattr_default_np(&greedy) != 0)
        skip();
    cpu_pool *three = cpu_pool_new(3);
    roll r = { .pool = cpu_pool_new(0) };
    assert_int_equal(pthread_setattr_default_np(&before), 0);
    assert_null(three);
    assert_non_null(strstr(base_error(), "threads: the system gives 1 of the 3 asked for"));
    assert_int_equal(cpu_pool_threads(r.pool), 1);
    cpu_pool_run(r.pool, call_roll, &r);
    assert_int_equal(r.ran[0], 1);
    cpu_pool_free(r.pool);
    pthread_attr_destroy(&before);
    pthread_attr_destroy(&greedy);
}

/* Each thread writes its round where all can see, and after the barrier sees every other's: plain memory, ordered by the
 * barrier alone. Threads are late by turns, so that some wait spinning and some asleep. */
typedef struct { cpu_pool *pool; int rounds, at[MOST_THREADS], wrong[MOST_THREADS]; } race;

static void run_race(void *context, int thread, int n)
{
    race *r = context;
    for (int round = 1; round <= r->rounds; round++) {
        if (round % 64 == thread * 5)
            nanosleep(&(struct timespec){ .tv_nsec = round % 128 ? 2000000 : 10000 }, NULL);
        r->at[thread] = round;
        cpu_barrier(r->pool);
        for (int t = 0; t < n; t++)
            r->wrong[thread] += r->at[t] != round;
        cpu_barrier(r->pool);
    }
}

static void threads_meet_at_barriers(void **state)
{
    (void)state;
    for (size_t s = 0; s < COUNT_OF(team_sizes); s++) {
        race r = { .pool = cpu_pool_new(team_sizes[s]), .rounds = 700 };
        for (int region = 0; region < 3; region++)
            cpu_pool_run(r.pool, run_race, &r);
        for (int t = 0; t < MOST_THREADS; t++)
            if (r.wrong[t])
                fail_msg("%d threads: thread %d saw %d stale values", team_sizes[s], t, r.wrong[t]);
        cpu_pool_free(r.pool);
    }
}

enum { TASKS = 1000 };
typedef struct { cpu_pool *pool; cpu_tasks tasks; int taken[TASKS]; } work;

static void take_tasks(void *context, int thread, int n)
{
    work *w = context;
    (void)n;
    for (int chunk = 1; chunk <= 7; chunk += 3) {
        for (int64_t first; (first = cpu_next_task(&w->tasks, chunk)) < TASKS; )
            for (int64_t i = first; i < MIN(first + chunk, TASKS); i++)
                w->taken[i]++;
        cpu_barrier(w->pool);
        if (thread == 0)
            cpu_tasks_reset(&w->tasks);
        cpu_barrier(w->pool);
    }
}

static void threads_share_tasks(void **state)
{
    (void)state;
    for (size_t s = 0; s < COUNT_OF(team_sizes); s++) {
        work *w = base_alloc(sizeof *w);
        w->pool = cpu_pool_new(team_sizes[s]);
        cpu_pool_run(w->pool, take_tasks, w);
        for (int i = 0; i < TASKS; i++)
            assert_int_equal(w->taken[i], 3);
        cpu_pool_free(w->pool);
        base_free(w);
    }
}

/* A pool whose workers sleep, and one of which the caller sleeps. */
static void be_late(void *context, int thread, int n)
{
    roll *r = context;
    if (thread == n - 1)
        nanosleep(&(struct timespec){ .tv_nsec = 4000000 }, NULL);
    r->ran[thread]++;
}

static void threads_wake_from_sleep(void **state)
{
    (void)state;
    for (size_t s = 0; s < COUNT_OF(team_sizes); s++) {
        roll r = { .pool = cpu_pool_new(team_sizes[s]) };
        for (int i = 0; i < 5; i++) {
            nanosleep(&(struct timespec){ .tv_nsec = 4000000 }, NULL);
            cpu_pool_run(r.pool, be_late, &r);
        }
        for (int t = 0; t < team_sizes[s]; t++)
            assert_int_equal(r.ran[t], 5);
        cpu_pool_free(r.pool);
    }
}

static void threads_survive_fork(void **state)
{
    (void)state;
    if (UNDER_TSAN)
        skip();                              /* it ends a process that makes threads after a fork with threads */
    roll r = { .pool = cpu_pool_new(3) };
    cpu_pool_run(r.pool, call_roll, &r);
    for (int child = 0; child < 2; child++) {
        pid_t pid = fork();
        if (pid == 0) {
            if (child == 0) {                /* one runs, the other only frees */
                cpu_pool_run(r.pool, call_roll, &r);
                cpu_pool_run(r.pool, call_roll, &r);
            }
            bool right = r.ran[0] == (child ? 1 : 3) && r.ran[1] == r.ran[0] && r.ran[2] == r.ran[0];
            cpu_pool_free(r.pool);
            _exit(right ? 0 : 1);
        }
        int status;
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_int_equal(status, 0);
    }
    cpu_pool_run(r.pool, call_roll, &r);
    assert_int_equal(r.ran[2], 2);
    cpu_pool_free(r.pool);
}

#if defined(__x86_64__)

typedef struct { volatile float small; float results[MOST_THREADS]; } denormals;

static void halve(void *context, int thread, int n)
{
    denormals *d = context;
    (void)n;
    d->results[thread] = d->small * 0.5f;
}

static void threads_have_the_callers_float_mode(void **state)
{
    (void)state;
    denormals d = { .small = 1.2e-38f };
    cpu_pool *pool = cpu_pool_new(3);
    unsigned before = _mm_getcsr();
    for (int flush = 0; flush < 4; flush++) {
        _mm_setcsr(flush % 2 ? before | 0x8040 : before);
        cpu_pool_run(pool, halve, &d);
        _mm_setcsr(before);
        for (int t = 0; t < 3; t++)
            assert_int_equal(d.results[t] == 0, flush % 2);
    }
    cpu_pool_free(pool);
}

#else

static void threads_have_the_callers_float_mode(void **state) { (void)state; skip(); }

#endif

/* Barriers and regions of awake threads take some 70 and 120 ns; a lost spin or a system call on the way would take some
 * microseconds. One quick run among many short ones is enough, so that a busy machine does not fail. */
enum { BATCH = 1000 };

static void pass_barriers(void *context, int thread, int n)
{
    (void)thread, (void)n;
    for (int i = 0; i < BATCH; i++)
        cpu_barrier(context);
}

static void do_nothing(void *context, int thread, int n) { (void)context, (void)thread, (void)n; }

static double now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static void threads_are_quick(void **state)
{
    (void)state;
    if (UNDER_TSAN || base_usable_cpus() < 2)
        skip();
    cpu_pool *pool = cpu_pool_new(2);
    double barrier = 1e9, region = 1e9;
    for (int round = 0; round < 300 && (barrier > 1000 || region > 1000); round++) {
        double start = now_ns();
        cpu_pool_run(pool, pass_barriers, pool);
        double middle = now_ns();
        for (int i = 0; i < BATCH; i++)
            cpu_pool_run(pool, do_nothing, NULL);
        barrier = MIN(barrier, (middle - start) / BATCH);
        region = MIN(region, (now_ns() - middle) / BATCH);
    }
    cpu_pool_free(pool);
    if (barrier > 1000 || region > 1000)
        fail_msg("2 threads: expected at most 1000 ns, got %.0f ns a barrier and %.0f ns a region", barrier, region);
}

/* Threads that other processes push together on one CPU: who waits lets the awaited one run. One quick run is enough here too; a barrier
 * takes 50 us, and a millisecond where the other only runs once this one sleeps. */
typedef struct { cpu_pool *pool; cpu_set_t one; } crowd;

static void meet_on_one_cpu(void *context, int thread, int n)
{
    crowd *c = context;
    (void)thread, (void)n;
    sched_setaffinity(0, sizeof c->one, &c->one);
    for (int i = 0; i < 20; i++)
        cpu_barrier(c->pool);
}

static void threads_make_way(void **state)
{
    (void)state;
    cpu_set_t usable;
    if (base_usable_cpus() < 2 || sched_getaffinity(0, sizeof usable, &usable) != 0)
        skip();
    crowd c = { .pool = cpu_pool_new(2) };
    double barrier = 1e9;
    for (int cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&c.one) == 0; cpu++)
        if (CPU_ISSET(cpu, &usable))
            CPU_SET(cpu, &c.one);
    for (int round = 0; round < 100 && barrier > 500e3; round++) {
        double start = now_ns();
        cpu_pool_run(c.pool, meet_on_one_cpu, &c);
        barrier = MIN(barrier, (now_ns() - start) / 20);
    }
    sched_setaffinity(0, sizeof usable, &usable);
    cpu_pool_free(c.pool);
    if (barrier > 500e3)
        fail_msg("2 threads on one CPU: expected at most 500 us a barrier, got %.0f", barrier / 1e3);
}

/* Where the scheduler moves the caller to a worker's CPU, the worker leaves it. */
static void note_cpu(void *context, int thread, int n)
{
    (void)n;
    ((int *)context)[thread] = sched_getcpu();
}

static void workers_leave_the_callers_cpu(void **state)
{
    (void)state;
    cpu_set_t usable, one;
    if (sched_getaffinity(0, sizeof usable, &usable) != 0 || CPU_COUNT(&usable) != 2 || base_usable_cpus() != 2)
        skip();
    cpu_pool *pool = cpu_pool_new(2);
    int cpu[2];
    for (int turn = 0; turn < 4; turn++) {
        cpu_pool_run(pool, note_cpu, cpu);
        CPU_ZERO(&one);
        CPU_SET(cpu[1], &one);
        assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
        cpu_pool_run(pool, note_cpu, cpu);
        assert_int_not_equal(cpu[0], cpu[1]);
    }
    sched_setaffinity(0, sizeof usable, &usable);
    cpu_pool_free(pool);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(threads_run_each_once),
        cmocka_unit_test(threads_that_the_system_refuses),
        cmocka_unit_test(threads_meet_at_barriers),
        cmocka_unit_test(threads_share_tasks),
        cmocka_unit_test(threads_wake_from_sleep),
        cmocka_unit_test(threads_survive_fork),
        cmocka_unit_test(threads_have_the_callers_float_mode),
        cmocka_unit_test(threads_are_quick),
        cmocka_unit_test(threads_make_way),
        cmocka_unit_test(workers_leave_the_callers_cpu),
        cmocka_unit_test(nothing_leaks),
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
