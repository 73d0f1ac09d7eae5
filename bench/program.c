/* A rax function with arguments of its own, called again and again: most cases are one. */
#include "bench/bench.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bench_program *bench_program_new(rax_step *step, const char *signature, int n_results)
{
    bench_program *p = rax_alloc(sizeof *p);
    p->fn = rax_function(step, "bench", signature);
    p->n_results = n_results;
    return p;
}

static bool call_once(bench_program *p)
{
    rax_into into[BENCH_MAX_RESULTS];
    for (int i = 0; i < p->n_results; i++)
        into[i] = rax_into_tensor(&p->result[i]);
    return rax_call_at(RAX_HERE, p->fn, p->n_args, p->args, p->n_results, into);
}

static bool call(void *program)
{
    bench_program *p = program;
    if (!p->products)
        return call_once(p);
    const char *old = getenv("RAX_PRODUCTS");
    char *kept = old ? strdup(old) : NULL;
    setenv("RAX_PRODUCTS", p->products, 1);
    p->products = NULL;                          /* it is compiled by this call */
    bool done = call_once(p);
    if (kept)
        setenv("RAX_PRODUCTS", kept, 1);
    else
        unsetenv("RAX_PRODUCTS");
    free(kept);
    return done;
}

void bench_program_free(void *program)
{
    bench_program *p = program;
    rax_function_free(p->fn);
    for (int i = 0; i < p->n_args; i++)
        if (p->args[i].kind == RAX_PASS_TENSOR)
            rax_tensor_free(p->args[i].tensor);
    for (int i = 0; i < p->n_results; i++)
        rax_tensor_free(p->result[i]);
    rax_free(p);
}

static uint32_t next_noise(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return *state >> 8;                          /* 24 bits; the low ones repeat soon */
}

static bool pass(bench_program *p, rax_tensor tensor)
{
    if (!rax_is_tensor(tensor))
        return false;
    p->args[p->n_args++] = rax_pass_tensor(tensor);
    return true;
}

bool bench_pass_noise(bench_program *p, rax_dtype dtype, rax_shape shape)
{
    rax_tensor tensor = rax_tensor_new(dtype, shape);
    uint32_t state = (uint32_t)p->n_args + 1;
    if (!rax_is_tensor(tensor))
        return false;
    void *data = rax_data(tensor);
    for (int64_t i = 0, n = rax_count(tensor); i < n; i++) {
        float x = (float)next_noise(&state) / 8388608 - 1;
        if (dtype == RAX_BF16) {
            uint32_t bits;
            memcpy(&bits, &x, sizeof bits);
            ((uint16_t *)data)[i] = (uint16_t)(bits >> 16);
        } else {
            ((float *)data)[i] = x;
        }
    }
    return pass(p, tensor);
}

bool bench_pass_ids(bench_program *p, rax_shape shape, int below)
{
    rax_tensor tensor = rax_tensor_new(RAX_I32, shape);
    uint32_t state = 1;
    if (!rax_is_tensor(tensor))
        return false;
    int32_t *data = rax_data(tensor);
    for (int64_t i = 0, n = rax_count(tensor); i < n; i++)
        data[i] = (int32_t)(next_noise(&state) % (uint32_t)below);
    return pass(p, tensor);
}

static double planned_mb(const void *program) { return (double)rax_stats(((const bench_program *)program)->fn).arena_bytes * 1e-6; }

bench_case bench_case_of(bench_program *p, bench_bound bound, double flops, double bytes, const char *name, ...)
{
    bench_case c = { .bound = bound, .flops = flops, .bytes = bytes, .call = call, .planned_mb = planned_mb, .free = bench_program_free,
                     .context = p };
    va_list args;
    va_start(args, name);
    vsnprintf(c.name, sizeof c.name, name, args);
    va_end(args);
    return c;
}
