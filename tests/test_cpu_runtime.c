/* What the CPU backend stands on: the machine, the threads, compiling, loading, the cache of objects.
 * One test alone: build/tests/test_cpu_runtime 'loader*' */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <llvm-c/Core.h>
#include <llvm-c/IRReader.h>
#include <llvm-c/Linker.h>

#include "backend_cpu/runtime.h"

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

static char scratch[64];                     /* a folder of this run, removed at the end */

static char *in_scratch(const char *name)
{
    static char path[4][256];
    static int turn;
    turn = (turn + 1) % 4;
    snprintf(path[turn], sizeof path[turn], "%s/%s", scratch, name);
    return path[turn];
}

static void write_file(const char *path, const void *at, size_t size)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_int_equal(fwrite(at, 1, size, file), size);
    fclose(file);
}

static char *read_file(const char *path, size_t *size)
{
    FILE *file = fopen(path, "r");
    if (!file)
        fail_msg("%s: expected a file", path);
    fseek(file, 0, SEEK_END);
    *size = (size_t)ftell(file);
    rewind(file);
    char *text = base_alloc(*size + 1);
    assert_int_equal(fread(text, 1, *size, file), *size);
    fclose(file);
    return text;
}

/* Between the two, what is written to standard error goes to a file, which the second gives. */
static int stderr_before;

static void catch_stderr(void)
{
    fflush(stderr);
    stderr_before = dup(STDERR_FILENO);
    int to = open(in_scratch("stderr"), O_CREAT | O_TRUNC | O_WRONLY, 0600);
    dup2(to, STDERR_FILENO);
    close(to);
}

static char *caught_stderr(void)
{
    size_t size;
    fflush(stderr);
    dup2(stderr_before, STDERR_FILENO);
    close(stderr_before);
    return read_file(in_scratch("stderr"), &size);
}

static uint64_t random_state = 1;
static uint64_t draw(uint64_t below)         /* xorshift64: the same draws in every run */
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state % below;
}

/* -- machine ---------------------------------------------------------------------------------------------------------- */

static void machine_is_detected(void **state)
{
    (void)state;
    cpu_machine m;
    assert_true(cpu_machine_detect(&m, ""));
    assert_int_equal(m.isa, m.best_isa);
    assert_true(m.cpus >= 1 && m.name[0]);
    assert_true(m.l1d_bytes >= 4096 && m.l2_bytes >= m.l1d_bytes && m.l3_bytes > 0);
    assert_true(m.f32_lanes == 4 || m.f32_lanes == 8 || m.f32_lanes == 16);
    assert_int_equal(strlen(m.digest), 32);
    base_memory memory = base_memory_now();
    assert_true(memory.total_bytes >= memory.available_bytes && memory.available_bytes > 0);
}

/* Pages that nobody has written to are nobody's for the kernel; together they may be more than there is. */
static void memory_is_promised_once(void **state)
{
    (void)state;
    void *large = base_try_alloc(8 << 20);
    bool maps = base_mapped_bytes() > 0;
    base_free(large);
    if (!maps)                                              /* with sanitizers all is touched when it is handed out: half the machine */
        skip();
    size_t available = base_memory_now().available_bytes;
    void *half = base_try_alloc(available / 2);
    assert_non_null(half);
    assert_true(base_memory_now().available_bytes < available / 4 * 3);
    assert_null(base_try_alloc(available / 4 * 3));
    base_free(half);
    assert_true(base_memory_now().available_bytes > available / 4 * 3);
    void *most = base_try_alloc(available / 4 * 3);         /* what is given back may be had again */
    assert_non_null(most);
    base_free(most);
    assert_null(base_try_alloc(PTRDIFF_MAX));
}

/* Blocks that come, grow and go in any order: each keeps what is written to it, and nothing is left over. */
static void mapped_blocks_come_and_go(void **state)
{
    (void)state;
    enum { BLOCKS = 200, TURNS = 3000 };
    char *block[BLOCKS] = {0};
    size_t size[BLOCKS] = {0}, mapped = base_mapped_bytes(), count = base_alloc_count();
    uint32_t dice = 1;
    for (int i = 0; i < TURNS; i++) {
        int at = (int)((dice = dice * 1664525 + 1013904223) >> 8) % BLOCKS;
        size_t bytes = (size_t)((dice = dice * 1664525 + 1013904223) >> 8) % (5 << 19) + 1;
        if (block[at])
            assert_true(block[at][0] == (char)at && block[at][size[at] - 1] == (char)at);
        if (block[at] && i % 3) {
            base_free(block[at]);
            block[at] = NULL;
            continue;
        }
        block[at] = block[at] ? base_try_grow(block[at], bytes) : base_try_alloc(bytes);
        assert_non_null(block[at]);
        assert_int_equal((uintptr_t)block[at] % 64, 0);
        block[at][0] = block[at][bytes - 1] = (char)at;
        size[at] = bytes;
    }
    for (int i = 0; i < BLOCKS; i++)
        base_free(block[i]);
    assert_int_equal(base_mapped_bytes(), mapped);
    assert_int_equal(base_alloc_count(), count);
}

static void machine_levels_by_name(void **state)
{
    (void)state;
    static const int lanes[CPU_ISA_COUNT] = {4, 8, 16, 16, 16};
    cpu_machine best, m;
    assert_true(cpu_machine_detect(&best, ""));
    for (int i = 0; i < CPU_ISA_COUNT; i++) {
        bool can = i <= (int)best.best_isa;
        assert_int_equal(cpu_machine_detect(&m, cpu_isa_name((cpu_isa)i)), can);
        if (!can) {
            assert_int_equal(base_error_kind_of(), BASE_MISTAKE);
            assert_non_null(strstr(base_error(), cpu_isa_name((cpu_isa)i)));
            continue;
        }
        assert_int_equal(m.isa, i);
        assert_int_equal(m.f32_lanes, lanes[i]);
        assert_int_equal(strcmp(m.digest, best.digest) == 0, m.isa == best.isa);
    }
    assert_false(cpu_machine_detect(&m, "sse9"));
    assert_string_equal(base_error(), "isa: expected generic, avx2, avx512, avx512bf16 or amx, got \"sse9\"");
    assert_int_equal(base_error_kind_of(), BASE_MISTAKE);

    setenv("RAX_ISA", "generic", 1);
    assert_true(cpu_machine_detect(&m, NULL));
    assert_int_equal(m.isa, CPU_GENERIC);
    setenv("RAX_ISA", "sse9", 1);
    assert_false(cpu_machine_detect(&m, NULL));
    assert_string_equal(base_error(), "RAX_ISA: expected generic, avx2, avx512, avx512bf16 or amx, got \"sse9\"");
    unsetenv("RAX_ISA");
}

static void plant(const char *root, const char *path, const char *text)
{
    char full[512];
    snprintf(full, sizeof full, "%s/%s", root, path);
    for (char *slash = strchr(full + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(full, 0700);
        *slash = '/';
    }
    write_file(full, text, strlen(text));
}

static const char meminfo[] = "MemTotal:       16000 kB\nMemFree:         9000 kB\nMemAvailable:   12000 kB\n";

static void limits_of_cgroup_v2(void **state)
{
    (void)state;
    const char *root = in_scratch("v2");
    plant(root, "proc/meminfo", meminfo);
    plant(root, "proc/self/cgroup", "0::/a/b\n");
    base_limits l = base_limits_read(root);
    assert_int_equal(l.cpus, 0);
    assert_int_equal(l.memory.total_bytes, 16000 << 10);
    assert_int_equal(l.memory.available_bytes, 12000 << 10);

    plant(root, "sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
    plant(root, "sys/fs/cgroup/a/cpu.max", "250000 100000\n");           /* a parent binds; two and a half are two */
    plant(root, "sys/fs/cgroup/a/b/memory.max", "8192000\n");
    plant(root, "sys/fs/cgroup/a/b/memory.current", "3000000\n");
    plant(root, "sys/fs/cgroup/a/b/memory.stat", "anon 2000000\ninactive_file 1000000\nactive_file 0\n");
    plant(root, "sys/fs/cgroup/memory.max", "max\n");
    l = base_limits_read(root);
    assert_int_equal(l.cpus, 2);
    assert_int_equal(l.memory.total_bytes, 8192000);
    assert_int_equal(l.memory.available_bytes, 8192000 - 2000000);

    plant(root, "sys/fs/cgroup/cpu.max", "20000 100000\n");               /* a fifth of a CPU is still one */
    assert_int_equal(base_limits_read(root).cpus, 1);
}

static void limits_of_cgroup_v1(void **state)
{
    (void)state;
    const char *root = in_scratch("v1");
    plant(root, "proc/meminfo", meminfo);
    plant(root, "proc/self/cgroup", "5:memory:/docker/1\n4:cpuacct,cpu:/docker/1\n1:name=systemd:/\n0::/\n");
    plant(root, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
    plant(root, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
    plant(root, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    plant(root, "sys/fs/cgroup/memory/memory.usage_in_bytes", "123456\n");
    base_limits l = base_limits_read(root);
    assert_int_equal(l.cpus, 0);
    assert_int_equal(l.memory.total_bytes, 16000 << 10);

    plant(root, "sys/fs/cgroup/cpu/docker/1/cpu.cfs_quota_us", "300000\n");
    plant(root, "sys/fs/cgroup/cpu/docker/1/cpu.cfs_period_us", "100000\n");
    plant(root, "sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes", "1000000\n");
    plant(root, "sys/fs/cgroup/memory/docker/1/memory.usage_in_bytes", "900000\n");
    plant(root, "sys/fs/cgroup/memory/docker/1/memory.stat", "inactive_file 1\ntotal_inactive_file 50000\n");
    l = base_limits_read(root);
    assert_int_equal(l.cpus, 3);
    assert_int_equal(l.memory.total_bytes, 1000000);
    assert_int_equal(l.memory.available_bytes, 150000);
}

/* -- threads ---------------------------------------------------------------------------------------------------------- */

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
#if defined(__x86_64__)
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
#else
    skip();
#endif
}

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

/* -- compiling -------------------------------------------------------------------------------------------------------- */

/* A module with what kernels have: vectors, a constant pool, a jump table, static data, calls and data outside. V is the
 * vector type, L the lanes. */
static const char kernels_ir[] =
    "@count = internal global i32 0\n"
    "@limits = internal constant [3 x double] [double 1.5, double 2.5, double 4.5]\n"
    "@host_value = external global float\n"
    "declare float @host_twice(float)\n"
    "declare float @expf(float)\n"
    "declare V @llvm.fma.vLf32(V, V, V)\n"
    "declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)\n"
    "define void @axpy(ptr %x, ptr %y, i64 %n) {\n"        /* y = x * RAMP + y; n is a multiple of L */
    "entry: br label %loop\n"
    "loop: %i = phi i64 [0, %entry], [%next, %loop]\n"
    "  %px = getelementptr float, ptr %x, i64 %i\n  %py = getelementptr float, ptr %y, i64 %i\n"
    "  %vx = load V, ptr %px, align 4\n  %vy = load V, ptr %py, align 4\n"
    "  %r = call V @llvm.fma.vLf32(V %vx, V RAMP, V %vy)\n"
    "  store V %r, ptr %py, align 4\n  %next = add i64 %i, L\n  %more = icmp ult i64 %next, %n\n"
    "  br i1 %more, label %loop, label %done\n"
    "done: ret void }\n"
    "define float @outside(float %x) {\n"
    "  %e = call float @expf(float %x)\n  %t = call float @host_twice(float %x)\n  %h = load float, ptr @host_value\n"
    "  %p = fmul float %t, %h\n  %s = fadd float %e, %p\n  ret float %s }\n"
    "define void @clear(ptr %at, i64 %size) { call void @llvm.memset.p0.i64(ptr %at, i8 0, i64 %size, i1 false) ret void }\n"
    "define double @limit(i64 %i) { %p = getelementptr [3 x double], ptr @limits, i64 0, i64 %i\n"
    "  %v = load double, ptr %p\n  ret double %v }\n"
    "define i32 @next() { %c = load i32, ptr @count\n  %d = add i32 %c, 1\n  store i32 %d, ptr @count\n  ret i32 %d }\n"
    "define i32 @choose(i32 %i, i32 %v) {\n"
    "  switch i32 %i, label %z [i32 0, label %a i32 1, label %b i32 2, label %c i32 3, label %d i32 4, label %e i32 5, label %f]\n"
    "a: %ra = add i32 %v, 7\n ret i32 %ra\nb: %rb = mul i32 %v, %v\n ret i32 %rb\nc: %rc = call i32 @next()\n ret i32 %rc\n"
    "d: %rd = xor i32 %v, 85\n ret i32 %rd\ne: %re = shl i32 %v, 3\n ret i32 %re\nf: %rf = sdiv i32 %v, 3\n ret i32 %rf\n"
    "z: ret i32 -1 }\n";

/* Another object, which calls the first. */
static const char caller_ir[] =
    "declare i32 @choose(i32, i32)\n"
    "define i32 @choose_twice(i32 %i, i32 %v) { %a = call i32 @choose(i32 %i, i32 %v)\n"
    "  %b = call i32 @choose(i32 %i, i32 %a)\n  ret i32 %b }\n";

static float host_value = 10;
static float host_twice(float x) { return 2 * x; }
static const cpu_symbol externals[] = { { "host_value", &host_value }, { "host_twice", (void *)host_twice } };
enum { EXTERNALS = COUNT_OF(externals) };

static float ramp(int lane) { return 0.5f + (float)lane; }

/* The text with V, L and RAMP, as words, replaced. */
static char *for_lanes(const char *ir, int lanes)
{
    base_text text = {0};
    for (const char *c = ir; *c; ) {
        if (strncmp(c, "RAMP", 4) == 0) {
            for (int i = 0; i < lanes; i++)
                base_text_add(&text, "%sfloat %.1f", i ? ", " : "<", ramp(i));
            base_text_add(&text, ">");
            c += 4;
        } else if (strncmp(c, "V ", 2) == 0 || strncmp(c, "V,", 2) == 0 || strncmp(c, "V)", 2) == 0) {
            base_text_add(&text, "<%d x float>", lanes);
            c++;
        } else if (*c == 'L') {
            base_text_add(&text, "%d", lanes);
            c++;
        } else {
            base_text_add(&text, "%c", *c++);
        }
    }
    return base_text_take(&text);
}

static void add_ir(LLVMModuleRef module, const char *ir)
{
    LLVMModuleRef part;
    char *message = NULL;
    LLVMMemoryBufferRef buffer = LLVMCreateMemoryBufferWithMemoryRangeCopy(ir, strlen(ir), "test");
    if (LLVMParseIRInContext(LLVMGetModuleContext(module), buffer, &part, &message))
        fail_msg("LLVM: %s in:\n%s", message, ir);
    LLVMSetTarget(part, LLVMGetTarget(module));
    LLVMSetDataLayout(part, LLVMGetDataLayoutStr(module));
    assert_int_equal(LLVMLinkModules2(module, part), 0);
}

static bool build_kernels(void *context, int i, LLVMModuleRef module)
{
    const cpu_machine *machine = context;
    char *ir = for_lanes(i == 0 ? kernels_ir : caller_ir, machine->f32_lanes);
    add_ir(module, ir);
    base_free(ir);
    return true;
}

static void compile_kernels(const char *isa, base_bytes objects[2])
{
    cpu_machine machine;
    assert_true(cpu_machine_detect(&machine, isa));
    cpu_jit *jit = cpu_jit_new(&machine);
    assert_non_null(jit);
    cpu_jit_set_verify(jit, true);
    if (!cpu_jit_compile_many(jit, 2, build_kernels, &machine, 2, objects))
        fail_msg("%s", base_error());
    cpu_jit_free(jit);
}

typedef void axpy_fn(const float *x, float *y, int64_t n);
typedef float outside_fn(float x);
typedef void clear_fn(void *at, int64_t size);
typedef double limit_fn(int64_t i);
typedef int choose_fn(int i, int v);

static void check_kernels(const cpu_code *code, int lanes, const char *where)
{
    enum { N = 64 };
    static const int chosen[7] = {107, 10000, 1, 49, 800, 33, -1}, twice[7] = {114, 100000000, 3, 100, 6400, 11, -1};
    axpy_fn *axpy = (axpy_fn *)cpu_code_find(code, "axpy");
    outside_fn *outside = (outside_fn *)cpu_code_find(code, "outside");
    clear_fn *clear = (clear_fn *)cpu_code_find(code, "clear");
    limit_fn *limit = (limit_fn *)cpu_code_find(code, "limit");
    choose_fn *choose = (choose_fn *)cpu_code_find(code, "choose"), *both = (choose_fn *)cpu_code_find(code, "choose_twice");
    if (!axpy || !outside || !clear || !limit || !choose || !both)
        fail_msg("%s: expected every function to be found", where);
    assert_null(cpu_code_find(code, "no_such_function"));
    assert_null(cpu_code_find(code, "count"));

    float x[N], y[N + 1];
    for (int i = 0; i < N; i++) {
        x[i] = 0.1f * (float)i;
        y[i] = 3;
    }
    y[N] = 42;
    axpy(x, y, N);
    for (int i = 0; i < N; i++) {
        float expected = fmaf(x[i], ramp(i % lanes), 3);
        if (y[i] != expected)
            fail_msg("%s: axpy[%d]: expected %.9g, got %.9g", where, i, expected, y[i]);
    }
    assert_true(y[N] == 42);
    host_value = 10;
    assert_true(outside(0.25f) == expf(0.25f) + 5);
    host_value = 20;
    assert_true(outside(0.25f) == expf(0.25f) + 10);
    clear(x, sizeof x);
    for (int i = 0; i < N; i++)
        assert_true(x[i] == 0);
    assert_true(limit(0) == 1.5 && limit(2) == 4.5);
    for (int i = 0; i < 7; i++) {
        assert_int_equal(choose(i, 100), chosen[i]);
        assert_int_equal(both(i, 100), twice[i]);
    }
}

static void each_level_compiles(void **state)
{
    (void)state;
    cpu_machine best;
    assert_true(cpu_machine_detect(&best, ""));
    for (int i = 0; i <= (int)best.best_isa; i++) {
        base_bytes objects[2];
        cpu_machine m;
        assert_true(cpu_machine_detect(&m, cpu_isa_name((cpu_isa)i)));
        compile_kernels(cpu_isa_name((cpu_isa)i), objects);
        cpu_code *own = cpu_code_load(objects, 2, externals, EXTERNALS);
        if (!own)
            fail_msg("%s", base_error());
        check_kernels(own, m.f32_lanes, cpu_isa_name((cpu_isa)i));
        cpu_code *orc = cpu_code_load_orc(objects, 2, externals, EXTERNALS);
        if (!orc)
            fail_msg("%s", base_error());
        check_kernels(orc, m.f32_lanes, "ORC");
        assert_true(cpu_code_bytes(own) > 0 && cpu_code_bytes(orc) > 0);
        cpu_code_free(own);
        cpu_code_free(orc);
        base_bytes_free(&objects[0]);
        base_bytes_free(&objects[1]);
    }
    cpu_code_free(NULL);
}

/* The widths that a level has are used whole, and none above: the trap of the missing attributes. */
static void levels_use_their_vectors(void **state)
{
    (void)state;
    static const char *const registers[CPU_ISA_COUNT] = {"%xmm", "%ymm", "%zmm", "%zmm", "%zmm"};
    cpu_machine best;
    assert_true(cpu_machine_detect(&best, ""));
#if !defined(__x86_64__)
    skip();
#endif
    for (int i = 0; i <= (int)best.best_isa; i++) {
        cpu_machine m;
        base_bytes object;
        size_t size;
        assert_true(cpu_machine_detect(&m, cpu_isa_name((cpu_isa)i)));
        cpu_jit *jit = cpu_jit_new(&m);
        cpu_jit_set_dump(jit, scratch);
        LLVMContextRef llvm = LLVMContextCreate();
        LLVMModuleRef module = cpu_jit_module(jit, "dump/of a kernel", llvm);
        assert_true(build_kernels(&m, 0, module));
        assert_true(cpu_jit_compile(jit, module, &object));
        char *ir = read_file(in_scratch("dump_of_a_kernel.ll"), &size);
        assert_non_null(strstr(ir, "define void @axpy"));
        char *optimised = read_file(in_scratch("dump_of_a_kernel.opt.ll"), &size);
        assert_non_null(strstr(optimised, "\"prefer-vector-width\""));
        char *assembly = read_file(in_scratch("dump_of_a_kernel.s"), &size);
        for (int r = 0; r < CPU_AVX512BF16; r++) {                /* scalars are in xmm at every level */
            bool expected = r == 0 || strcmp(registers[r], registers[i]) == 0;
            if ((strstr(assembly, registers[r]) != NULL) != expected)
                fail_msg("%s: %s registers: expected %s", cpu_isa_name((cpu_isa)i), registers[r], expected ? "some" : "none");
        }
        base_free(ir);
        base_free(optimised);
        base_free(assembly);
        base_bytes_free(&object);

        cpu_jit_set_dump(jit, in_scratch("no-such-folder"));
        assert_false(cpu_jit_compile(jit, module, &object));
        assert_non_null(strstr(base_error(), "no-such-folder/dump_of_a_kernel.ll: No such file"));
        LLVMDisposeModule(module);
        LLVMContextDispose(llvm);
        cpu_jit_free(jit);
    }
}

/* Module i has function f<i>, which returns i; those named in `bad` fail. */
typedef struct { int bad[3]; } batch;

static bool build_numbered(void *context, int i, LLVMModuleRef module)
{
    const batch *b = context;
    char ir[128];
    for (size_t k = 0; k < COUNT_OF(b->bad); k++)
        if (b->bad[k] == i)
            return base_fail(BASE_MISTAKE, "module %d is bad", i);
    snprintf(ir, sizeof ir, "define i32 @f%d() { ret i32 %d }", i, i);
    add_ir(module, ir);
    return true;
}

static void many_modules_compile_in_parallel(void **state)
{
    (void)state;
    enum { MODULES = 23 };
    cpu_machine machine;
    assert_true(cpu_machine_detect(&machine, ""));
    cpu_jit *jit = cpu_jit_new(&machine);
    batch all = { .bad = {-1, -1, -1} }, some = { .bad = {17, 5, 9} };
    base_bytes alone[MODULES], together[MODULES];
    assert_true(cpu_jit_compile_many(jit, MODULES, build_numbered, &all, 1, alone));
    assert_true(cpu_jit_compile_many(jit, MODULES, build_numbered, &all, 3, together));
    for (int i = 0; i < MODULES; i++) {
        assert_int_equal(alone[i].size, together[i].size);
        assert_memory_equal(alone[i].at, together[i].at, alone[i].size);
    }
    cpu_code *code = cpu_code_load(together, MODULES, NULL, 0);
    assert_non_null(code);
    for (int i = 0; i < MODULES; i++) {
        char name[16];
        snprintf(name, sizeof name, "f%d", i);
        int (*f)(void) = (int (*)(void))cpu_code_find(code, name);
        assert_non_null(f);
        assert_int_equal(f(), i);
        base_bytes_free(&alone[i]);
        base_bytes_free(&together[i]);
    }
    cpu_code_free(code);

    for (int threads = 1; threads <= 3; threads++) {
        assert_false(cpu_jit_compile_many(jit, MODULES, build_numbered, &some, threads, together));
        assert_string_equal(base_error(), "module 5 is bad");
        assert_int_equal(base_error_kind_of(), BASE_MISTAKE);
        for (int i = 0; i < MODULES; i++)
            assert_null(together[i].at);
    }
    assert_true(cpu_jit_compile_many(jit, 0, build_numbered, &all, 0, together));
    cpu_jit_free(jit);
    code = cpu_code_load(NULL, 0, NULL, 0);
    assert_non_null(code);
    assert_null(cpu_code_find(code, "f0"));
    cpu_code_free(code);
}

static bool build_text(void *context, int i, LLVMModuleRef module)
{
    add_ir(module, ((const char *const *)context)[i]);
    return true;
}

static void what_llvm_rejects_is_an_error(void **state)
{
    (void)state;
    static const char *const assembly[] = {
        "define void @f() { call void asm sideeffect \"no such instruction\", \"\"() ret void }" };
    cpu_machine machine;
    base_bytes object;
    assert_true(cpu_machine_detect(&machine, ""));
    cpu_jit *jit = cpu_jit_new(&machine);
    cpu_jit_set_verify(jit, true);
    assert_false(cpu_jit_compile_many(jit, 1, build_text, (void *)assembly, 1, &object));
    assert_int_equal(base_error_kind_of(), BASE_FAILURE);
    assert_non_null(strstr(base_error(), "module unit0: code generation:"));
    assert_null(object.at);

    LLVMContextRef llvm = LLVMContextCreate();
    LLVMModuleRef module = cpu_jit_module(jit, "unfinished", llvm);
    LLVMValueRef f = LLVMAddFunction(module, "f", LLVMFunctionType(LLVMVoidTypeInContext(llvm), NULL, 0, 0));
    LLVMAppendBasicBlockInContext(llvm, f, "entry");             /* ends in nothing */
    assert_false(cpu_jit_compile(jit, module, &object));
    assert_non_null(strstr(base_error(), "module unfinished: the verifier:"));
    LLVMDisposeModule(module);
    LLVMContextDispose(llvm);
    cpu_jit_free(jit);
}

/* -- loading ---------------------------------------------------------------------------------------------------------- */

static void loader_names_what_is_missing(void **state)
{
    (void)state;
    static const char *const missing[] = { "declare void @nobody()\ndefine void @f() { call void @nobody() ret void }",
                                           "define void @f() { ret void }", "define void @f() { ret void }",
                                           ("declare extern_weak void @nobody()\n"
                                            "define i1 @f() { %r = icmp eq ptr @nobody, null\n ret i1 %r }") };
    cpu_machine machine;
    base_bytes objects[4];
    assert_true(cpu_machine_detect(&machine, ""));
    cpu_jit *jit = cpu_jit_new(&machine);
    assert_true(cpu_jit_compile_many(jit, 4, build_text, (void *)missing, 1, objects));
#if defined(__x86_64__)
    assert_null(cpu_code_load(&objects[0], 1, externals, EXTERNALS));
    assert_string_equal(base_error(), "object 0: nothing defines nobody");
    assert_int_equal(base_error_kind_of(), BASE_FAILURE);
    assert_null(cpu_code_load(&objects[1], 2, NULL, 0));
    assert_string_equal(base_error(), "objects define f twice");
    cpu_code *code = cpu_code_load(&objects[3], 1, NULL, 0);     /* a weak symbol that nothing defines is 0 */
    assert_non_null(code);
    assert_true(((bool (*)(void))cpu_code_find(code, "f"))());
    cpu_code_free(code);
#endif
    for (int i = 0; i < 4; i++)
        base_bytes_free(&objects[i]);
    cpu_jit_free(jit);
}

#if defined(__x86_64__)

/* A damaged object is linked or refused, and never read or written beyond its bounds (AddressSanitizer watches: the bytes
 * lie in a block of exactly their size). Nothing of it runs. */
static void load_damaged(const base_bytes objects[2], base_bytes damaged)
{
    base_bytes exact[2] = { { base_alloc(damaged.size), damaged.size }, objects[1] };
    if (damaged.size)
        memcpy(exact[0].at, damaged.at, damaged.size);
    cpu_code *code = cpu_code_load(exact, 2, externals, EXTERNALS);
    if (!code) {
        assert_int_equal(base_error_kind_of(), BASE_FAILURE);
        assert_true(base_error()[0]);
    }
    cpu_code_free(code);
    base_free(exact[0].at);
}

static void loader_bears_truncation(void **state)
{
    (void)state;
    base_bytes objects[2];
    compile_kernels("", objects);
    for (size_t size = 0; size < objects[0].size; size++)
        load_damaged(objects, (base_bytes){ objects[0].at, size });
    assert_null(cpu_code_load(&(base_bytes){ objects[0].at, 63 }, 1, NULL, 0));
    assert_string_equal(base_error(), "object 0 of 63 bytes: shorter than an ELF header");
    base_bytes_free(&objects[0]);
    base_bytes_free(&objects[1]);
}

static void loader_bears_damage(void **state)
{
    (void)state;
    static const uint64_t extremes[] = {0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff, INT64_MAX,
                                        1ull << 63, UINT64_MAX, UINT64_MAX - 7};
    base_bytes objects[2];
    compile_kernels("", objects);
    size_t size = objects[0].size;
    unsigned char *bytes = base_alloc(size);
    uint64_t sections_at;
    memcpy(&sections_at, (char *)objects[0].at + 40, 8);          /* e_shoff; they are the last thing in the file */

    /* Every field that can be, of 1, 2, 4 and 8 bytes, with every extreme. */
    for (size_t at = 0; at < size; at++)
        for (size_t width = 1; width <= 8; width *= 2)
            for (size_t e = 0; e < COUNT_OF(extremes) && at % width == 0 && at + width <= size; e++) {
                memcpy(bytes, objects[0].at, size);
                memcpy(bytes + at, &extremes[e], width);
                load_damaged(objects, (base_bytes){ bytes, size });
            }
    /* And anything anywhere. */
    for (int round = 0; round < 20000; round++) {
        memcpy(bytes, objects[0].at, size);
        for (uint64_t k = 1 + draw(4); k > 0; k--) {
            size_t at = draw(4) ? draw(size) : (size_t)(sections_at + draw(size - sections_at));
            bytes[at] = draw(3) ? (unsigned char)draw(256) : (unsigned char)(bytes[at] ^ (1u << draw(8)));
        }
        load_damaged(objects, (base_bytes){ bytes, size });
    }
    base_free(bytes);
    base_bytes_free(&objects[0]);
    base_bytes_free(&objects[1]);
}

static void loader_writes_a_perf_map(void **state)
{
    (void)state;
    base_bytes objects[2];
    char path[64];
    size_t size;
    compile_kernels("", objects);
    snprintf(path, sizeof path, "/tmp/perf-%ld.map", (long)getpid());
    setenv("RAX_PERF", "1", 1);
    cpu_code *code = cpu_code_load(objects, 2, externals, EXTERNALS);
    unsetenv("RAX_PERF");
    assert_non_null(code);
    char *map = read_file(path, &size), start[32];
    snprintf(start, sizeof start, "%llx ", (unsigned long long)(uintptr_t)cpu_code_find(code, "axpy"));
    assert_non_null(strstr(map, " axpy\n"));
    assert_non_null(strstr(map, start));
    unlink(path);
    base_free(map);
    cpu_code_free(code);
    base_bytes_free(&objects[0]);
    base_bytes_free(&objects[1]);
}

#endif

/* -- the cache -------------------------------------------------------------------------------------------------------- */

static int count_files(const char *folder)
{
    DIR *dir = opendir(folder);
    int n = 0;
    assert_non_null(dir);
    for (struct dirent *e; (e = readdir(dir)); )
        n += e->d_name[0] != '.';
    closedir(dir);
    return n;
}

static void entry_path(const base_cache *cache, base_key key, char path[256])
{
    snprintf(path, 256, "%s/%016llx%016llx.o", base_cache_folder(cache), (unsigned long long)key.high, (unsigned long long)key.low);
}

static void cache_keeps_what_is_put(void **state)
{
    (void)state;
    cpu_machine m;
    base_bytes bytes;
    struct stat s;
    assert_true(cpu_machine_detect(&m, ""));
    base_cache *cache = base_cache_open(in_scratch("cache"), 0);
    assert_non_null(cache);
    assert_int_equal(stat(base_cache_folder(cache), &s), 0);
    assert_int_equal(s.st_mode & 0777, 0700);

    base_key a = cpu_cache_key(&m, "a", 1), b = cpu_cache_key(&m, "b", 1);
    assert_false(base_cache_get(cache, a, &bytes));
    base_cache_put(cache, a, "code of a", 9);
    base_cache_put(cache, b, "", 0);
    assert_true(base_cache_get(cache, a, &bytes));
    assert_int_equal(bytes.size, 9);
    assert_memory_equal(bytes.at, "code of a", 9);
    base_bytes_free(&bytes);
    assert_true(base_cache_get(cache, b, &bytes));
    assert_int_equal(bytes.size, 0);
    base_bytes_free(&bytes);
    base_cache_close(cache);

    cache = base_cache_open(in_scratch("cache"), 0);               /* as a second start */
    assert_true(base_cache_get(cache, a, &bytes));
    base_bytes_free(&bytes);
    base_cache_close(cache);

    base_cache_put(NULL, a, "x", 1);                               /* no cache at all */
    assert_false(base_cache_get(NULL, a, &bytes));
    assert_string_equal(base_cache_folder(NULL), "");
    base_cache_close(NULL);
}

static bool same_key(base_key a, base_key b) { return a.high == b.high && a.low == b.low; }

static void cache_keys_tell_apart(void **state)
{
    (void)state;
    cpu_machine m, generic;
    assert_true(cpu_machine_detect(&m, ""));
    assert_true(cpu_machine_detect(&generic, "generic"));
    base_key key = cpu_cache_key(&m, "text", 4);
    assert_true(same_key(key, cpu_cache_key(&m, "text", 4)));
    assert_false(same_key(key, cpu_cache_key(&m, "texT", 4)));
    assert_false(same_key(key, cpu_cache_key(&m, "text", 3)));
    if (generic.isa != m.isa)
        assert_false(same_key(key, cpu_cache_key(&generic, "text", 4)));
    m.cpus++;
    assert_true(same_key(key, cpu_cache_key(&m, "text", 4)));     /* any number of threads runs the same code */
}

static void cache_takes_damage_for_a_miss(void **state)
{
    (void)state;
    enum { SIZE = 64 + 200 };
    cpu_machine m;
    base_bytes bytes;
    char path[256], content[200];
    size_t size;
    assert_true(cpu_machine_detect(&m, ""));
    base_cache *cache = base_cache_open(in_scratch("damage"), 0);
    base_key key = cpu_cache_key(&m, "k", 1), other = cpu_cache_key(&m, "o", 1);
    for (size_t i = 0; i < sizeof content; i++)
        content[i] = (char)i;
    entry_path(cache, key, path);
    base_cache_put(cache, key, content, sizeof content);
    char *whole = read_file(path, &size);
    assert_int_equal(size, SIZE);

    catch_stderr();                                               /* a warning for each of 528 */
    for (int at = 0; at < SIZE; at++) {
        whole[at] ^= 16;
        write_file(path, whole, SIZE);
        whole[at] ^= 16;
        if (base_cache_get(cache, key, &bytes))
            fail_msg("byte %d of an entry is damaged: expected a miss", at);
        assert_int_equal(access(path, F_OK), -1);
        assert_null(bytes.at);

        write_file(path, whole, (size_t)at);                      /* cut short */
        assert_false(base_cache_get(cache, key, &bytes));
        assert_int_equal(access(path, F_OK), -1);
    }
    write_file(path, whole, SIZE);
    assert_true(base_cache_get(cache, key, &bytes));
    base_bytes_free(&bytes);

    char elsewhere[256];                                          /* whole, but another's */
    entry_path(cache, other, elsewhere);
    assert_int_equal(rename(path, elsewhere), 0);
    assert_false(base_cache_get(cache, other, &bytes));
    base_free(caught_stderr());
    base_free(whole);
    base_cache_close(cache);
}

static void cache_warns_of_damage(void **state)
{
    (void)state;
    cpu_machine m;
    base_bytes bytes;
    char path[256];
    assert_true(cpu_machine_detect(&m, ""));
    base_cache *cache = base_cache_open(in_scratch("damage"), 0);
    base_key key = cpu_cache_key(&m, "w", 1);
    entry_path(cache, key, path);
    write_file(path, "nothing", 7);

    catch_stderr();
    assert_false(base_cache_get(cache, key, &bytes));
    char *said = caught_stderr();
    assert_memory_equal(said, "[RAX] ", 6);
    assert_non_null(strstr(said, path));
    assert_non_null(strstr(said, "damaged"));
    base_free(said);
    base_cache_close(cache);
}

static void cache_refuses_folders_of_others(void **state)
{
    (void)state;
    char *folder = in_scratch("open"), objects[256];
    mkdir(folder, 0700);
    snprintf(objects, sizeof objects, "%s/objects", folder);
    mkdir(objects, 0700);
    chmod(objects, 0777);
    assert_null(base_cache_open(folder, 0));
    chmod(objects, 0720);
    assert_null(base_cache_open(folder, 0));
    chmod(objects, 0755);                                         /* others may look */
    base_cache *cache = base_cache_open(folder, 0);
    assert_non_null(cache);
    base_cache_close(cache);
    if (geteuid() == 0) {
        assert_int_equal(chown(objects, 12345, 12345), 0);
        assert_null(base_cache_open(folder, 0));
    }
    rmdir(objects);
    assert_int_equal(symlink(scratch, objects), 0);
    assert_null(base_cache_open(folder, 0));

    write_file(in_scratch("a-file"), "x", 1);                     /* a folder that cannot be */
    assert_null(base_cache_open(in_scratch("a-file"), 0));
}

static void cache_folder_by_environment(void **state)
{
    (void)state;
    static const char *const names[] = {"RAX_CACHE_DIR", "XDG_CACHE_HOME", "HOME"};
    static const char *const expected[] = {"by-rax/objects", "by-xdg/rax/objects", "by-home/.cache/rax/objects"};
    static const char *const values[] = {"by-rax", "by-xdg", "by-home"};
    char *kept[3];
    for (int i = 0; i < 3; i++) {
        kept[i] = getenv(names[i]) ? base_strdup(getenv(names[i])) : NULL;
        setenv(names[i], in_scratch(values[i]), 1);
    }
    for (int i = 0; i < 3; i++) {                                 /* each in turn, the ones before it unset */
        base_cache *cache = base_cache_open(NULL, 0);
        assert_non_null(cache);
        assert_string_equal(base_cache_folder(cache), in_scratch(expected[i]));
        base_cache_close(cache);
        unsetenv(names[i]);
    }
    assert_null(base_cache_open(NULL, 0));
    for (int i = 0; i < 3; i++) {
        if (kept[i])
            setenv(names[i], kept[i], 1);
        base_free(kept[i]);
    }
}

static void set_age(const char *path, long seconds)
{
    struct timespec t = { .tv_sec = time(NULL) - seconds };
    assert_int_equal(utimensat(AT_FDCWD, path, (struct timespec[]){ t, t }, 0), 0);
}

static void cache_is_bounded(void **state)
{
    (void)state;
    enum { ENTRY = 1000, LIMIT = 20 * ENTRY, ENTRIES = 18 };      /* 18 entries of 1064 bytes fit, and 19 do not */
    cpu_machine m;
    base_bytes bytes;
    char path[256], content[ENTRY] = "";
    base_key keys[ENTRIES + 1];
    assert_true(cpu_machine_detect(&m, ""));
    base_cache *cache = base_cache_open(in_scratch("bounded"), LIMIT);
    for (int i = 0; i < ENTRIES; i++) {
        keys[i] = cpu_cache_key(&m, &i, sizeof i);
        base_cache_put(cache, keys[i], content, ENTRY);
        entry_path(cache, keys[i], path);
        set_age(path, 100000 - 100 * i);                          /* 0 is the oldest */
    }
    char left[256];
    snprintf(left, sizeof left, "%s/tmp-1-2-3", base_cache_folder(cache));
    write_file(left, "x", 1);
    set_age(left, 10000);
    assert_int_equal(count_files(base_cache_folder(cache)), ENTRIES + 1);
    assert_true(base_cache_get(cache, keys[0], &bytes));           /* and is used again */
    base_bytes_free(&bytes);

    int extra = ENTRIES;
    keys[ENTRIES] = cpu_cache_key(&m, &extra, sizeof extra);
    base_cache_put(cache, keys[ENTRIES], content, ENTRY);
    assert_int_equal(count_files(base_cache_folder(cache)), 16);   /* nine tenths; the leftover is gone too */
    for (int i = 0; i <= ENTRIES; i++) {
        bool found = base_cache_get(cache, keys[i], &bytes);
        if (found != (i == 0 || i > 3))
            fail_msg("entry %d: expected %s", i, found ? "a miss" : "a hit");
        base_bytes_free(&bytes);
    }
    char *large = base_alloc(LIMIT + 1);
    base_key key = cpu_cache_key(&m, "large", 5);
    base_cache_put(cache, key, large, LIMIT + 1);                  /* never fits */
    assert_false(base_cache_get(cache, key, &bytes));
    base_free(large);
    base_cache_close(cache);
}

enum { WRITERS = 4, WRITTEN = 60 };
static void *write_and_read(void *argument)
{
    base_cache *cache = argument;
    size_t wrong = 0;
    for (int round = 0; round < 3; round++)
        for (uint64_t i = 0; i < WRITTEN; i++) {
            base_key key = { i, i * i };
            uint64_t content[40];
            base_bytes bytes;
            for (size_t k = 0; k < COUNT_OF(content); k++)
                content[k] = i * k;
            if (base_cache_get(cache, key, &bytes))
                wrong += bytes.size != sizeof content || memcmp(bytes.at, content, sizeof content) != 0;
            else
                base_cache_put(cache, key, content, sizeof content);
            base_bytes_free(&bytes);
        }
    return (void *)wrong;
}

static void cache_is_shared_by_threads(void **state)
{
    (void)state;
    pthread_t threads[WRITERS];
    base_cache *cache = base_cache_open(in_scratch("shared"), 40 * (64 + 320));     /* not all fit: some are trimmed meanwhile */
    for (int i = 0; i < WRITERS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, write_and_read, cache), 0);
    for (int i = 0; i < WRITERS; i++) {
        void *wrong;
        pthread_join(threads[i], &wrong);
        assert_null(wrong);
    }
    base_cache_close(cache);
}

static void cached_object_loads(void **state)
{
    (void)state;
    cpu_machine m;
    base_bytes objects[2], again[2];
    assert_true(cpu_machine_detect(&m, ""));
    compile_kernels("", objects);
    base_cache *cache = base_cache_open(in_scratch("objects"), 0);
    for (int i = 0; i < 2; i++) {
        base_key key = cpu_cache_key(&m, &i, sizeof i);
        base_cache_put(cache, key, objects[i].at, objects[i].size);
        assert_true(base_cache_get(cache, key, &again[i]));
        base_bytes_free(&objects[i]);
    }
    cpu_code *code = cpu_code_load(again, 2, externals, EXTERNALS);
    assert_non_null(code);
    check_kernels(code, m.f32_lanes, "from the cache");
    cpu_code_free(code);
    base_bytes_free(&again[0]);
    base_bytes_free(&again[1]);
    base_cache_close(cache);
}

/* -- all of it -------------------------------------------------------------------------------------------------------- */

static void nothing_leaks(void **state)      /* the last: every block of the tests before it is free again */
{
    (void)state;
    assert_int_equal(base_alloc_count(), 0);
}

static int remove_one(const char *path, const struct stat *s, int type, struct FTW *ftw)
{
    (void)s, (void)type, (void)ftw;
    return remove(path);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(machine_is_detected),
        cmocka_unit_test(memory_is_promised_once), cmocka_unit_test(mapped_blocks_come_and_go),
        cmocka_unit_test(machine_levels_by_name),
        cmocka_unit_test(limits_of_cgroup_v2),
        cmocka_unit_test(limits_of_cgroup_v1),
        cmocka_unit_test(threads_run_each_once),
        cmocka_unit_test(threads_meet_at_barriers),
        cmocka_unit_test(threads_share_tasks),
        cmocka_unit_test(threads_wake_from_sleep),
        cmocka_unit_test(threads_survive_fork),
        cmocka_unit_test(threads_have_the_callers_float_mode),
        cmocka_unit_test(threads_are_quick),
        cmocka_unit_test(threads_make_way), cmocka_unit_test(workers_leave_the_callers_cpu),
        cmocka_unit_test(each_level_compiles),
        cmocka_unit_test(levels_use_their_vectors),
        cmocka_unit_test(many_modules_compile_in_parallel),
        cmocka_unit_test(what_llvm_rejects_is_an_error),
        cmocka_unit_test(loader_names_what_is_missing),
#if defined(__x86_64__)
        cmocka_unit_test(loader_bears_truncation),
        cmocka_unit_test(loader_bears_damage),
        cmocka_unit_test(loader_writes_a_perf_map),
#endif
        cmocka_unit_test(cache_keeps_what_is_put),
        cmocka_unit_test(cache_keys_tell_apart),
        cmocka_unit_test(cache_takes_damage_for_a_miss),
        cmocka_unit_test(cache_warns_of_damage),
        cmocka_unit_test(cache_refuses_folders_of_others),
        cmocka_unit_test(cache_folder_by_environment),
        cmocka_unit_test(cache_is_bounded),
        cmocka_unit_test(cache_is_shared_by_threads),
        cmocka_unit_test(cached_object_loads),
        cmocka_unit_test(nothing_leaks),
    };
    snprintf(scratch, sizeof scratch, "/tmp/rax-test-XXXXXX");
    if (!mkdtemp(scratch))
        return 1;
    unsetenv("RAX_ISA");
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    nftw(scratch, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    return failed != 0;
}
