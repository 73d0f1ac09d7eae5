/* How cost grows: attention by the context, a step by the batch. Nothing should grow but in proportion: GFLOP/s stay what they are, and
 * attention's memory is a few times its operands, never context times context. */
#include "bench/bench.h"

#include <stdio.h>

/* What takes longer than seconds tells no more than what does not. */
static const double most_flops = 2e12;

static bool attention(bench *b, bool bf16)
{
    static const int contexts[] = { 256, 1024, 2048, 4096, 8192 };
    enum { CONTEXTS = sizeof contexts / sizeof contexts[0] };
    bench_case cases[CONTEXTS];
    for (int i = 0; i < CONTEXTS; i++) {
        bench_workload w = { .heads = 12, .width = 12 * 64, .context = contexts[i], .batch = 1 };
        char name[64];
        snprintf(name, sizeof name, "growth/12 heads of 64, T %d", contexts[i]);
        cases[i] = bench_attention_case(&w, bf16, true, name);
    }
    return bench_measure(b, CONTEXTS, cases);
}

static bool steps(bench *b, bench_workload w, bool bf16)
{
    enum { SMALLEST = 4, LARGEST = 64 };
    bench_case cases[LARGEST];
    int n = 0;
    for (w.batch = SMALLEST; w.batch <= LARGEST && bench_step_flops(&w) <= most_flops; w.batch *= 2) {
        char name[64];
        snprintf(name, sizeof name, "growth/%s, batch %d", w.name, w.batch);
        cases[n++] = bench_step_case(b, &w, bf16, name);
    }
    return bench_measure(b, n, cases);
}

bool bench_growth(bench *b)
{
    bool done = true;
    for (int bf16 = 0; bf16 < 2; bf16++) {
        if (bf16 ? !b->bf16 : !b->f32)
            continue;
        done = done && (b->stop() || attention(b, bf16));
        for (int i = 0; done && i < BENCH_WORKLOADS && !b->stop(); i++)
            if (b->workload[i])
                done = steps(b, bench_workloads[i], bf16);
    }
    return done;
}
