/* How a case is timed: a call that compiles, one that tells how many fill a sample, then samples of all cases in turn. */
#include "bench/bench.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

static double now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec * 1e-6;
}

static bool timed_calls(const bench_case *c, int calls, double *ms)
{
    double start = now_ms();
    for (int i = 0; i < calls; i++)
        if (!c->call(c->context))
            return false;
    if (!rax_wait())
        return false;
    *ms = (now_ms() - start) / calls;
    return true;
}

/* Calls that fill a sample; 0 where the call failed. */
static int calls_of(const bench *b, const bench_case *c)
{
    enum { MOST = 100000 };
    double ms;
    if (c->sample)
        return 1;
    if (!c->call(c->context) || !rax_wait() || !timed_calls(c, 1, &ms))
        return 0;
    double calls = b->sample_ms / (ms > 1e-6 ? ms : 1e-6);
    return calls < 1 ? 1 : calls > MOST ? MOST : (int)calls;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double peak_of(const bench *b, bench_bound bound)
{
    switch (bound) {
    case BENCH_F32:     return b->peak.f32_gflops;
    case BENCH_BF16:    return b->peak.bf16_gflops;
    case BENCH_MEMORY:  return b->peak.read_gbs > b->peak.update_gbs ? b->peak.read_gbs : b->peak.update_gbs;
    case BENCH_NOTHING: break;
    }
    return 0;
}

static void add_result(bench *b, const bench_case *c, double *samples)
{
    int n = b->repeats;
    if (b->n_results == b->cap_results) {
        int cap = b->cap_results ? 2 * b->cap_results : 64;
        bench_result *more = rax_alloc(sizeof *more * (size_t)cap);
        if (b->n_results)
            memcpy(more, b->results, sizeof *more * (size_t)b->n_results);
        rax_free(b->results);
        b->results = more;
        b->cap_results = cap;
    }
    qsort(samples, (size_t)n, sizeof *samples, by_value);
    bench_result *r = &b->results[b->n_results++];
    *r = (bench_result){ .bound = c->bound, .median_ms = samples[n / 2], .low_ms = samples[n / 4], .high_ms = samples[n - 1 - n / 4] };
    memcpy(r->name, c->name, sizeof r->name);
    r->gflops = c->flops / r->median_ms * 1e-6;
    r->gbs = c->bytes / r->median_ms * 1e-6;
    r->planned_mb = c->planned_mb ? c->planned_mb(c->context) : 0;
    double peak = peak_of(b, c->bound);
    r->share = peak > 0 ? (c->bound == BENCH_MEMORY ? r->gbs : r->gflops) / peak : 0;
    if (b->show)
        b->show(b, r);
}

static bool sample_all(const bench *b, int n, bench_case *cases, double *samples)
{
    int *calls = rax_alloc(sizeof *calls * (size_t)n);
    bool done = true;
    for (int i = 0; done && i < n; i++)
        done = (calls[i] = calls_of(b, &cases[i])) > 0;
    for (int r = 0; done && r < b->repeats; r++)
        for (int i = 0; done && i < n; i++) {
            double *ms = &samples[i * b->repeats + r];
            done = cases[i].sample ? cases[i].sample(cases[i].context, ms) : timed_calls(&cases[i], calls[i], ms);
        }
    rax_free(calls);
    return done;
}

bool bench_measure(bench *b, int n, bench_case *cases)
{
    double *samples = rax_alloc(sizeof *samples * (size_t)(n * b->repeats + 1));
    bool whole = true;
    for (int i = 0; i < n; i++)
        whole &= cases[i].context != NULL;
    whole = whole && sample_all(b, n, cases, samples);
    for (int i = 0; whole && i < n; i++)
        add_result(b, &cases[i], samples + i * b->repeats);
    for (int i = 0; i < n; i++)
        if (cases[i].free && cases[i].context)
            cases[i].free(cases[i].context);
    rax_free(samples);
    return whole;
}
