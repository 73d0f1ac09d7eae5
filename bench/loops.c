/* What memory bounds: the loops of a training step, each alone, on its rows of one workload. Bytes are what must be read and written once;
 * where all of it lies in a cache, the share of the memory's speed is beyond 100 %. */
#include "bench/bench.h"

/* -- steps: (x, ...) -> (y, ...); gradients of sum(y dy) ---------------------------------------------------------------- */

static void norm(rax_args *in, rax_results *out)
{
    rax_return_tensor(out, 0, rax_layer_norm(rax_arg_tensor(in, 0), rax_arg_tensor(in, 1), rax_arg_tensor(in, 2), 1e-5));
}

static void norm_gradient(rax_args *in, rax_results *out)
{
    rax_tensor xs[3] = { rax_arg_tensor(in, 0), rax_arg_tensor(in, 1), rax_arg_tensor(in, 2) }, d[3];
    rax_tensor y = rax_layer_norm(xs[0], xs[1], xs[2], 1e-5);
    rax_grad_of(rax_sum(rax_mul(y, rax_arg_tensor(in, 3)), RAX_ALL_AXES), 3, xs, d);
    for (int i = 0; i < 3; i++)
        rax_return_tensor(out, i, d[i]);
}

static void softmax(rax_args *in, rax_results *out) { rax_return_tensor(out, 0, rax_softmax(rax_arg_tensor(in, 0), -1)); }
static void gelu(rax_args *in, rax_results *out) { rax_return_tensor(out, 0, rax_gelu(rax_arg_tensor(in, 0))); }

static void softmax_gradient(rax_args *in, rax_results *out)
{
    rax_tensor x = rax_arg_tensor(in, 0), dx;
    rax_grad_of(rax_sum(rax_mul(rax_softmax(x, -1), rax_arg_tensor(in, 1)), RAX_ALL_AXES), 1, &x, &dx);
    rax_return_tensor(out, 0, dx);
}

static void gelu_gradient(rax_args *in, rax_results *out)
{
    rax_tensor x = rax_arg_tensor(in, 0), dx;
    rax_grad_of(rax_sum(rax_mul(rax_gelu(x), rax_arg_tensor(in, 1)), RAX_ALL_AXES), 1, &x, &dx);
    rax_return_tensor(out, 0, dx);
}

static void cross_entropy(rax_args *in, rax_results *out)
{
    rax_return_tensor(out, 0, rax_cross_entropy(rax_arg_tensor(in, 0), rax_arg_tensor(in, 1)));
}

static void cross_entropy_gradient(rax_args *in, rax_results *out)
{
    rax_tensor x = rax_arg_tensor(in, 0), dx;
    rax_grad_of(rax_mean(rax_cross_entropy(x, rax_arg_tensor(in, 1)), RAX_ALL_AXES), 1, &x, &dx);
    rax_return_tensor(out, 0, dx);
}

static void gather(rax_args *in, rax_results *out) { rax_return_tensor(out, 0, rax_gather(rax_arg_tensor(in, 0), rax_arg_tensor(in, 1), 0)); }

static void gather_gradient(rax_args *in, rax_results *out)
{
    rax_tensor table = rax_arg_tensor(in, 0), d;
    rax_grad_of(rax_sum(rax_mul(rax_gather(table, rax_arg_tensor(in, 1), 0), rax_arg_tensor(in, 2)), RAX_ALL_AXES), 1, &table, &d);
    rax_return_tensor(out, 0, d);
}

/* (w, m, v, g), the first three updated: their memory is taken over. */
static void adamw(rax_args *in, rax_results *out)
{
    rax_tensor w = rax_arg_tensor(in, 0), m = rax_arg_tensor(in, 1), v = rax_arg_tensor(in, 2), one = rax_constant(RAX_F32, RAX_SCALAR, 0.1);
    rax_adamw_options options = { .lr = one, .correction1 = one, .correction2 = one, .beta1 = 0.9, .beta2 = 0.99, .epsilon = 1e-8, .weight_decay = 0.1 };
    rax_adamw(&w, &m, &v, rax_arg_tensor(in, 3), options);
    rax_return_tensor(out, 0, w);
    rax_return_tensor(out, 1, m);
    rax_return_tensor(out, 2, v);
}

static rax_random of_seed(void) { return (rax_random){ rax_seed(1), rax_constant(RAX_I32, RAX_SCALAR, 1) }; }
static void uniform(rax_args *in, rax_results *out) { rax_return_tensor(out, 0, rax_uniform(of_seed(), rax_shape_of(rax_arg_tensor(in, 0)))); }
static void normal(rax_args *in, rax_results *out) { rax_return_tensor(out, 0, rax_normal(of_seed(), rax_shape_of(rax_arg_tensor(in, 0)))); }
static void dropout(rax_args *in, rax_results *out) { rax_return_tensor(out, 0, rax_dropout(of_seed(), rax_arg_tensor(in, 0), 0.1)); }

/* -- cases ----------------------------------------------------------------------------------------------------------------- */

static int64_t rows(const bench_workload *w) { return (int64_t)w->batch * w->context; }

static bench_program *passed(bench_program *p, bool all)
{
    if (all)
        return p;
    bench_program_free(p);
    return NULL;
}

/* Runs cases_of for each workload that was asked for. */
typedef int cases_for(const bench_workload *w, bench_case *cases);
static bool each_workload(bench *b, cases_for *cases_of)
{
    for (int i = 0; i < BENCH_WORKLOADS; i++) {
        bench_case cases[4];
        if (b->workload[i] && !b->stop() && !bench_measure(b, cases_of(&bench_workloads[i], cases), cases))
            return false;
    }
    return true;
}

static bench_program *of_norm(rax_step *step, int n_results, rax_shape x, rax_shape w)
{
    bench_program *p = bench_program_new(step, "x: f32[...], w: f32[C], b: f32[C], dy: f32[...]", n_results);
    return passed(p, bench_pass_noise(p, RAX_F32, x) && bench_pass_noise(p, RAX_F32, w) && bench_pass_noise(p, RAX_F32, w) &&
                     bench_pass_noise(p, RAX_F32, x));
}

static int layer_norm_cases(const bench_workload *w, bench_case *cases)
{
    rax_shape x = RAX_SHAPE(rows(w), w->width), c = RAX_SHAPE(w->width);
    double array = 4.0 * (double)rows(w) * w->width;
    cases[0] = bench_case_of(of_norm(norm, 1, x, c), BENCH_MEMORY, 0, 2 * array, "layer_norm/%s/forward", w->name);
    cases[1] = bench_case_of(of_norm(norm_gradient, 3, x, c), BENCH_MEMORY, 0, 3 * array, "layer_norm/%s/backward", w->name);
    return 2;
}

static bench_program *of_two(rax_step *step, rax_shape x)
{
    bench_program *p = bench_program_new(step, "x: f32[...], dy: f32[...]", 1);
    return passed(p, bench_pass_noise(p, RAX_F32, x) && bench_pass_noise(p, RAX_F32, x));
}

static int softmax_cases(const bench_workload *w, bench_case *cases)
{
    rax_shape x = RAX_SHAPE(rows(w), w->context);
    double array = 4.0 * (double)rows(w) * w->context;
    cases[0] = bench_case_of(of_two(softmax, x), BENCH_MEMORY, 0, 2 * array, "softmax/%s/forward", w->name);
    cases[1] = bench_case_of(of_two(softmax_gradient, x), BENCH_MEMORY, 0, 3 * array, "softmax/%s/backward", w->name);
    return 2;
}

static int gelu_cases(const bench_workload *w, bench_case *cases)
{
    rax_shape x = RAX_SHAPE(rows(w), 4 * w->width);
    double array = 16.0 * (double)rows(w) * w->width;
    cases[0] = bench_case_of(of_two(gelu, x), BENCH_MEMORY, 0, 2 * array, "gelu/%s/forward", w->name);
    cases[1] = bench_case_of(of_two(gelu_gradient, x), BENCH_MEMORY, 0, 3 * array, "gelu/%s/backward", w->name);
    return 2;
}

/* Logits of at most so many rows: the step has them by chunks. */
enum { LOSS_ROWS = 256 };

static bench_program *of_loss(rax_step *step, const bench_workload *w, int64_t n)
{
    bench_program *p = bench_program_new(step, "x: f32[N,V], y: i32[N]", 1);
    return passed(p, bench_pass_noise(p, RAX_F32, RAX_SHAPE(n, w->vocab)) && bench_pass_ids(p, RAX_SHAPE(n), w->vocab));
}

static int cross_entropy_cases(const bench_workload *w, bench_case *cases)
{
    int64_t n = rows(w) > LOSS_ROWS ? LOSS_ROWS : rows(w);
    double array = 4.0 * (double)n * w->vocab;
    cases[0] = bench_case_of(of_loss(cross_entropy, w, n), BENCH_MEMORY, 0, array, "cross_entropy/%s/forward", w->name);
    cases[1] = bench_case_of(of_loss(cross_entropy_gradient, w, n), BENCH_MEMORY, 0, 2 * array, "cross_entropy/%s/backward", w->name);
    return 2;
}

static bench_program *of_table(rax_step *step, const bench_workload *w)
{
    bench_program *p = bench_program_new(step, "table: f32[V,C], ids: i32[N], dy: f32[N,C]", 1);
    return passed(p, bench_pass_noise(p, RAX_F32, RAX_SHAPE(w->vocab, w->width)) && bench_pass_ids(p, RAX_SHAPE(rows(w)), w->vocab) &&
                     bench_pass_noise(p, RAX_F32, RAX_SHAPE(rows(w), w->width)));
}

static int embedding_cases(const bench_workload *w, bench_case *cases)
{
    double array = 4.0 * (double)rows(w) * w->width, table = 4.0 * w->vocab * w->width;
    cases[0] = bench_case_of(of_table(gather, w), BENCH_MEMORY, 0, 2 * array, "embedding/%s/forward", w->name);
    cases[1] = bench_case_of(of_table(gather_gradient, w), BENCH_MEMORY, 0, table + 3 * array, "embedding/%s/backward", w->name);
    return 2;
}

static bool update(void *context)
{
    bench_program *p = context;
    rax_into into[] = { rax_into_tensor(&p->args[0].tensor), rax_into_tensor(&p->args[1].tensor), rax_into_tensor(&p->args[2].tensor) };
    return rax_call_at(RAX_HERE, p->fn, p->n_args, p->args, 3, into);
}

static int adamw_cases(const bench_workload *w, bench_case *cases)
{
    int64_t n = (int64_t)bench_parameters(w);
    bench_program *p = bench_program_new(adamw, "w: f32[N], m: f32[N], v: f32[N], g: f32[N]", 0);
    bool all = true;
    for (int i = 0; all && i < 4; i++)
        all = bench_pass_noise(p, RAX_F32, RAX_SHAPE(n));
    if (all) {                                          /* v is a mean of squares */
        float *v = rax_data(p->args[2].tensor);
        for (int64_t i = 0; i < n; i++)
            v[i] *= v[i];
    }
    cases[0] = bench_case_of(passed(p, all), BENCH_MEMORY, 0, 7.0 * 4 * (double)n, "adamw/%s", w->name);
    cases[0].call = update;
    return 1;
}

static bench_program *of_one(rax_step *step, rax_shape x)
{
    bench_program *p = bench_program_new(step, "x: f32[...]", 1);
    return passed(p, bench_pass_noise(p, RAX_F32, x));
}

static int random_cases(const bench_workload *w, bench_case *cases)
{
    rax_shape x = RAX_SHAPE(rows(w), 4 * w->width);
    double array = 16.0 * (double)rows(w) * w->width;
    cases[0] = bench_case_of(of_one(uniform, x), BENCH_MEMORY, 0, array, "random/%s/uniform", w->name);
    cases[1] = bench_case_of(of_one(normal, x), BENCH_MEMORY, 0, array, "random/%s/normal", w->name);
    cases[2] = bench_case_of(of_one(dropout, x), BENCH_MEMORY, 0, 2 * array, "random/%s/dropout", w->name);
    return 3;
}

bool bench_layer_norm(bench *b) { return each_workload(b, layer_norm_cases); }
bool bench_softmax(bench *b) { return each_workload(b, softmax_cases); }
bool bench_gelu(bench *b) { return each_workload(b, gelu_cases); }
bool bench_cross_entropy(bench *b) { return each_workload(b, cross_entropy_cases); }
bool bench_embedding(bench *b) { return each_workload(b, embedding_cases); }
bool bench_adamw(bench *b) { return each_workload(b, adamw_cases); }
bool bench_random(bench *b) { return each_workload(b, random_cases); }
