/* Products: the five of each workload's step, in the three directions, by each way that there is.
 *
 *     forward   y  [N,F] = x  [N,K] w [K,F]
 *     dx        dx [N,K] = dy [N,F] w^T
 *     dw        dw [K,F] = x^T dy
 *
 * Results have the type of the operands, as other libraries' have, but dw, which a step adds up in f32.
 * A device has one way. Nothing is fused to them here: what follows a product in a step is seen by `rax train --profile`. */
#include "bench/bench.h"

static void forward(rax_args *in, rax_results *out)
{
    rax_return_tensor(out, 0, rax_matmul(rax_arg_tensor(in, 0), rax_arg_tensor(in, 1)));
}

static void dx(rax_args *in, rax_results *out)
{
    rax_return_tensor(out, 0, rax_matmul(rax_arg_tensor(in, 0), rax_swap(rax_arg_tensor(in, 1), 0, 1)));
}

static void dw(rax_args *in, rax_results *out)
{
    rax_return_tensor(out, 0, rax_matmul_f32(rax_swap(rax_arg_tensor(in, 0), 0, 1), rax_arg_tensor(in, 1)));
}

enum { FORWARD, DX, DW, DIRECTIONS };
static const struct { const char *name; rax_step *step; } directions[DIRECTIONS] = {
    [FORWARD] = { "forward", forward }, [DX] = { "dx", dx }, [DW] = { "dw", dw } };

/* The operands' shapes by direction, of N rows, K inputs, F outputs. */
static bench_program *product(int direction, rax_dtype dtype, const char *way, int64_t N, int64_t K, int64_t F)
{
    const char *signature = dtype == RAX_BF16 ? "a: bf16[...], b: bf16[...]" : "a: f32[...], b: f32[...]";
    bench_program *p = bench_program_new(directions[direction].step, signature, 1);
    rax_shape x = RAX_SHAPE(N, K), w = RAX_SHAPE(K, F), y = RAX_SHAPE(N, F);
    p->products = way;
    if (bench_pass_noise(p, dtype, direction == DX ? y : x) && bench_pass_noise(p, dtype, direction == DW ? y : w))
        return p;
    bench_program_free(p);
    return NULL;
}

static bool one_layer(bench *b, const bench_workload *w, const char *layer, int64_t N, int64_t K, int64_t F)
{
    double flops = 2.0 * (double)N * (double)K * (double)F;
    for (int d = 0; d < DIRECTIONS; d++) {
        bench_case cases[3];
        int n = 0;
        if (b->f32 && b->peak.device) {
            cases[n++] = bench_case_of(product(d, RAX_F32, NULL, N, K, F), BENCH_F32, flops, 0, "matmul/%s/%s/%s f32", w->name, layer, directions[d].name);
        } else if (b->f32) {
            cases[n++] = bench_case_of(product(d, RAX_F32, "generated", N, K, F), BENCH_F32, flops, 0, "matmul/%s/%s/%s f32 generated", w->name, layer, directions[d].name);
            cases[n++] = bench_case_of(product(d, RAX_F32, "openblas", N, K, F), BENCH_F32, flops, 0, "matmul/%s/%s/%s f32 openblas", w->name, layer, directions[d].name);
        }
        if (b->bf16)
            cases[n++] = bench_case_of(product(d, RAX_BF16, b->peak.device ? NULL : "generated", N, K, F), BENCH_BF16, flops, 0, "matmul/%s/%s/%s bf16%s", w->name, layer,
                                       directions[d].name, b->peak.device ? "" : " generated");
        if (!bench_measure(b, n, cases))
            return false;
    }
    return true;
}

/* The loss has its logits by chunks of rows, of about so many at a time. */
enum { LOSS_ROWS = 256 };

bool bench_products(bench *b)
{
    bool done = true;
    for (int i = 0; done && i < BENCH_WORKLOADS; i++) {
        const bench_workload *w = &bench_workloads[i];
        int64_t N = (int64_t)w->batch * w->context, C = w->width;
        if (!b->workload[i] || b->stop())
            continue;
        done = one_layer(b, w, "qkv", N, C, 3 * C) && one_layer(b, w, "proj", N, C, C) && one_layer(b, w, "up", N, C, 4 * C) &&
               one_layer(b, w, "down", N, 4 * C, C) && one_layer(b, w, "head", w->vocab > 4096 && N > LOSS_ROWS ? LOSS_ROWS : N, C, w->vocab);
    }
    return done;
}
