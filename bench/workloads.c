/* The workloads' sizes, from the list that the scripts read too. */
#include "bench/bench.h"

const bench_workload bench_workloads[BENCH_WORKLOADS] = {
#define WORKLOAD(name, layers, heads, width, context, batch, vocab, bias) { #name, layers, heads, width, context, batch, vocab, bias },
#include "bench/workloads.def"
#undef WORKLOAD
};

double bench_parameters(const bench_workload *w)
{
    double C = w->width, layer = 12 * C * C + 2 * C + (w->bias ? 11 * C : 0);
    return ((double)w->vocab + w->context) * C + w->layers * layer + C * (w->bias ? 2 : 1);
}

double bench_step_flops(const bench_workload *w)
{
    double C = w->width, products = w->layers * 12 * C * C + w->vocab * C, tokens = (double)w->batch * w->context;
    return 6 * products * tokens + 6.0 * w->layers * w->batch * w->context * w->context * C;
}
