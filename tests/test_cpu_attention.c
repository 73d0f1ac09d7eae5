/* Attention of the CPU backend against two oracles: a plain loop in double, with every element at hand, and the decomposition of
 * the op run by the interpreter. Kernels are planned from hand-made views, so that all layouts occur; memory around and between
 * what a view reaches must stay as it was, and scratch and workspace are full of NaN before a run. */
#include <math.h>

#include "backend_cpu/attention.h"
#include "tests/cpu_kernels.h"

typedef struct {
    int64_t batch, heads, rows, keys, head_dim;
    bool causal;
    double dropout;
    ir_dtype dtype;
    int layout;                 /* 0 contiguous; 1 columns of a wider matrix of tokens; 2 columns apart */
} attention_case;

enum { SITE = 7, SEED_LOW = 12345, SEED_HIGH = 678, COUNTER = 9 };

static char *describe(const attention_case *c)
{
    return text_of("%s B%d H%d T%d S%d D%d%s dropout %g layout %d", ir_dtype_name(c->dtype), (int)c->batch, (int)c->heads,
                   (int)c->rows, (int)c->keys, (int)c->head_dim, c->causal ? " causal" : "", c->dropout, c->layout);
}

/* -- tensors of a case -------------------------------------------------------------------------------------------------- */

/* [B,H,n,D] by layout. */
static tensor tensor_of(const attention_case *c, int64_t n, ir_dtype dtype)
{
    int64_t d = c->head_dim, h = c->heads, extent[] = { c->batch, h, n, d };
    switch (c->layout) {
    case 0:  return new_tensor(dtype, 4, extent, (int64_t[]){ h * n * d, n * d, d, 1 }, 0);
    case 1:  return new_tensor(dtype, 4, extent, (int64_t[]){ n * (3 * h * d + 1), d, 3 * h * d + 1, 1 }, h * d);
    default: return new_tensor(dtype, 4, extent, (int64_t[]){ h * n * d, n * d, 1, n }, 3);
    }
}

static tensor statistics_of(const attention_case *c, ir_dtype wide)
{
    int64_t extent[] = { c->batch, c->heads, c->rows };
    int64_t across[] = { c->rows * c->heads, 1, c->heads }, along[] = { c->rows * c->heads, c->rows, 1 };
    return new_tensor(wide, 3, extent, c->layout == 2 ? across : along, 0);
}

/* Values in double, row-major. */
typedef struct { double *q, *k, *v, *out, *lse, *dout, *dlse, *dq, *dk, *dv; } numbers;

/* -- the plain loop ----------------------------------------------------------------------------------------------------- */

static double *reals(int64_t n) { return room(sizeof(double) * (size_t)MAX(n, 1)); }

/* What dropout makes of 1 at element i. */
static double dropout_factor(const attention_case *c, int64_t i)
{
    if (c->dropout == 0)
        return 1;
    uint32_t counter[] = { (uint32_t)(i >> 2), (uint32_t)(i >> 34), SITE, COUNTER }, key[] = { SEED_LOW, SEED_HIGH }, word[4];
    ir_philox(counter, key, word);
    return word[i & 3] >= floor(c->dropout * 0x1p32) ? 1 / (1 - c->dropout) : 0;
}

static void run_plainly(const attention_case *c, double scale, numbers *x)
{
    int64_t t = c->rows, s = c->keys, d = c->head_dim;
    double *p = reals(s);
    for (int64_t head = 0; head < c->batch * c->heads; head++)
        for (int64_t i = 0; i < t; i++) {
            const double *q = x->q + (head * t + i) * d, *dout = x->dout + (head * t + i) * d;
            double *out = x->out + (head * t + i) * d, *dq = x->dq + (head * t + i) * d;
            int64_t seen = c->causal ? i + s - t + 1 : s, at = (head * t + i) * s;
            double most = -INFINITY, sum = 0;
            for (int64_t j = 0; j < seen; j++) {
                p[j] = 0;
                for (int64_t e = 0; e < d; e++)
                    p[j] += q[e] * x->k[(head * s + j) * d + e];
                p[j] *= scale;
                most = fmax(most, p[j]);
            }
            for (int64_t j = 0; j < seen; j++)
                sum += exp(p[j] - most);
            x->lse[head * t + i] = most + log(sum);
            for (int64_t j = 0; j < seen; j++) {
                p[j] = exp(p[j] - x->lse[head * t + i]);
                for (int64_t e = 0; e < d; e++)
                    out[e] += p[j] * dropout_factor(c, at + j) * x->v[(head * s + j) * d + e];
            }
            double delta = -x->dlse[head * t + i];
            for (int64_t e = 0; e < d; e++)
                delta += dout[e] * out[e];
            for (int64_t j = 0; j < seen; j++) {
                double dp = 0, factor = dropout_factor(c, at + j);
                for (int64_t e = 0; e < d; e++) {
                    dp += dout[e] * x->v[(head * s + j) * d + e];
                    x->dv[(head * s + j) * d + e] += p[j] * factor * dout[e];
                }
                double ds = p[j] * (dp * factor - delta) * scale;
                for (int64_t e = 0; e < d; e++) {
                    dq[e] += ds * x->k[(head * s + j) * d + e];
                    x->dk[(head * s + j) * d + e] += ds * q[e];
                }
            }
        }
}

/* -- the kernels -------------------------------------------------------------------------------------------------------- */

typedef struct { tensor q, k, v, out, lse, dout, dlse, dq, dk, dv, seed, counter; } tensors;

static tensors make_tensors(const attention_case *c, bool with_dlse)
{
    ir_dtype wide = c->dtype == IR_F64 ? IR_F64 : IR_F32;
    tensors t = {
        .q = tensor_of(c, c->rows, c->dtype), .k = tensor_of(c, c->keys, c->dtype), .v = tensor_of(c, c->keys, c->dtype),
        .out = tensor_of(c, c->rows, c->dtype), .lse = statistics_of(c, wide), .dout = tensor_of(c, c->rows, c->dtype),
        .dq = tensor_of(c, c->rows, wide), .dk = tensor_of(c, c->keys, wide), .dv = tensor_of(c, c->keys, wide),
        .seed = new_tensor(IR_I32, 1, (int64_t[]){ 2 }, (int64_t[]){ 1 }, 1), .counter = new_tensor(IR_I32, 0, NULL, NULL, 0) };
    if (with_dlse)
        t.dlse = statistics_of(c, wide);
    dice d = { 42 };
    fill_tensor(&t.q, &d, -2, 2), fill_tensor(&t.k, &d, -2, 2), fill_tensor(&t.v, &d, -1, 1), fill_tensor(&t.dout, &d, -1, 1);
    if (with_dlse)
        fill_tensor(&t.dlse, &d, -1, 1);
    set_element(&t.seed, 0, SEED_LOW), set_element(&t.seed, 1, SEED_HIGH), set_element(&t.counter, 0, COUNTER);
    return t;
}

static void run_kernel(const attention_case *c, double scale, bool backward, tensors *t, int threads)
{
    one_kernel k = begin_kernel(KL_ATTENTION);
    kl_attention *a = k.kernel->attention = ARENA_NEW(k.program->arena, kl_attention, 1);
    *a = (kl_attention){
        .backward = backward, .batch = c->batch, .heads = c->heads, .rows = c->rows, .keys = c->keys, .head_dim = c->head_dim,
        .causal = c->causal, .scale = scale, .dropout = c->dropout, .site = SITE, .dtype = c->dtype,
        .grad_dtype = c->dtype == IR_F64 ? IR_F64 : IR_F32 };
    a->q = view_of(&k, &t->q), a->k = view_of(&k, &t->k), a->v = view_of(&k, &t->v);
    a->out = view_of(&k, &t->out), a->lse = view_of(&k, &t->lse);
    a->dout.buffer = a->dlse.buffer = a->seed.buffer = a->counter.buffer = -1;
    if (backward) {
        a->dout = view_of(&k, &t->dout);
        if (t->dlse.data)
            a->dlse = view_of(&k, &t->dlse);
        a->dq = view_of(&k, &t->dq), a->dk = view_of(&k, &t->dk), a->dv = view_of(&k, &t->dv);
    }
    if (c->dropout > 0)
        a->seed = view_of(&k, &t->seed), a->counter = view_of(&k, &t->counter);
    run_one_kernel(&k, cpu_plan_attention, threads);
}

static double *numbers_of(const tensor *t)
{
    double *x = reals(tensor_count(t));
    for (int64_t i = 0; i < tensor_count(t); i++)
        x[i] = get_element(t, i);
    return x;
}

static void check_numbers(const attention_case *c, const char *name, const tensor *got, const double *expected, double tolerance)
{
    for (int64_t i = 0; i < tensor_count(got); i++)
        if (!is_near(get_element(got, i), expected[i], tolerance))
            fail_msg("%s: %s[%lld]: expected %.9g, got %.9g, off by %.3g, tolerance %.3g", describe(c), name, (long long)i,
                     expected[i], get_element(got, i), get_element(got, i) - expected[i], tolerance);
    check_guards(got, "%s: %s", describe(c), name);
}

/* Sums of f32 in any order are off by some roundings times the square root of their length; bf16 rounds operands,
 * probabilities and gradients of scores to 8 bits, which for single terms near 1 is 2^-8 each. */
static double tolerance_of(const attention_case *c)
{
    switch (c->dtype) {
    case IR_F64:  return 1e-11;
    case IR_BF16: return 0.02 * sqrt((double)MAX(MAX(c->rows, c->keys), c->head_dim) / 16 + 1);
    default:      return 3e-6 * sqrt((double)MAX(MAX(c->rows, c->keys), c->head_dim) / 16 + 1);
    }
}

static double usual_scale(const attention_case *c) { return c->head_dim > 0 ? 1 / sqrt((double)c->head_dim) : 1; }

static void check_scaled(const attention_case *c, double scale, double tolerance)
{
    tensors t = make_tensors(c, (c->rows + c->keys) % 2 == 0);
    int64_t rows = c->batch * c->heads * c->rows, keys = c->batch * c->heads * c->keys, d = c->head_dim;
    numbers x = { .q = numbers_of(&t.q), .k = numbers_of(&t.k), .v = numbers_of(&t.v), .dout = numbers_of(&t.dout),
                  .dlse = t.dlse.data ? numbers_of(&t.dlse) : reals(rows), .out = reals(rows * d), .lse = reals(rows),
                  .dq = reals(rows * d), .dk = reals(keys * d), .dv = reals(keys * d) };
    run_plainly(c, scale, &x);
    run_kernel(c, scale, false, &t, 1);
    check_numbers(c, "out", &t.out, x.out, tolerance);
    check_numbers(c, "lse", &t.lse, x.lse, tolerance);
    run_kernel(c, scale, true, &t, 1);
    check_numbers(c, "dq", &t.dq, x.dq, tolerance);
    check_numbers(c, "dk", &t.dk, x.dk, tolerance);
    check_numbers(c, "dv", &t.dv, x.dv, tolerance);
}

static void check_case(const attention_case *c) { check_scaled(c, usual_scale(c), tolerance_of(c)); }

/* Cases are drawn: all dimensions vary at once. */
static void check_many(ir_dtype dtype, int n)
{
    static const int64_t lengths[] = { 1, 2, 3, 17, 31, 32, 33, 64, 65, 100, 129, 260 },
                         dims[] = { 1, 3, 16, 32, 33, 64, 80, 128 };
    static const double dropouts[] = { 0, 0, 0.2, 0.75 };
    dice d = { 1 };
    for (int i = 0; i < n; i++) {
        attention_case c = {
            .batch = 1 + (int)(2 * roll(&d)), .heads = 1 + (int)(3 * roll(&d)), .dtype = dtype, .layout = (int)(3 * roll(&d))
        };
        c.rows = lengths[(int)(COUNT_OF(lengths) * roll(&d))];
        c.keys = roll(&d) < 0.5 ? c.rows : lengths[(int)(COUNT_OF(lengths) * roll(&d))];
        c.head_dim = dims[(int)(COUNT_OF(dims) * roll(&d))];
        c.causal = c.keys >= c.rows && roll(&d) < 0.7;
        c.dropout = dropouts[(int)(COUNT_OF(dropouts) * roll(&d))];
        check_case(&c);
    }
}

static void at_isa(cpu_isa isa)
{
    if (isa > test_machine()->best_isa) {
        print_message("# this CPU has no %s\n", cpu_isa_name(isa));
        skip();
    }
    assert_true(cpu_machine_set_isa(test_machine(), isa));
    check_many(IR_F32, 60);
    check_many(IR_BF16, 40);
    check_many(IR_F64, 15);
}

static void attention_generic(void **state) { (void)state; at_isa(CPU_GENERIC); }
static void attention_avx2(void **state) { (void)state; at_isa(CPU_AVX2); }
static void attention_avx512(void **state) { (void)state; at_isa(CPU_AVX512); }
static void attention_avx512bf16(void **state) { (void)state; at_isa(CPU_AVX512BF16); }
static void attention_amx(void **state) { (void)state; at_isa(CPU_AMX); }

/* -- the interpreter ---------------------------------------------------------------------------------------------------- */

static void copy_elements(ir_array *to, const tensor *from)
{
    for (int64_t i = 0; i < tensor_count(from); i++)
        put(to, i, get_element(from, i));
}

static void check_array(const attention_case *c, const char *name, const tensor *got, const ir_array *expected)
{
    double *x = reals(tensor_count(got));
    for (int64_t i = 0; i < tensor_count(got); i++)
        x[i] = get(expected, i);
    check_numbers(c, name, got, x, tolerance_of(c));
}

/* out, lse, dq, dk, dv of q, k, v, dout, dlse, seed, counter. */
static ir_graph *graph_of_case(const attention_case *c)
{
    const char *dtype = ir_dtype_name(c->dtype), *wide = c->dtype == IR_F64 ? "f64" : "f32",
               *random = c->dropout > 0 ? ", %5, %6" : "";
    char *q = text_of("[%d,%d,%d,%d]", (int)c->batch, (int)c->heads, (int)c->rows, (int)c->head_dim);
    char *k = text_of("[%d,%d,%d,%d]", (int)c->batch, (int)c->heads, (int)c->keys, (int)c->head_dim);
    char *l = text_of("[%d,%d,%d]", (int)c->batch, (int)c->heads, (int)c->rows);
    char *attributes = text_of("{causal=%s, scale=%.17g, dropout=%.17g, site=%d}", c->causal ? "true" : "false",
                               usual_scale(c), c->dropout, SITE);
    return graph_of(text_of(
        "graph t(%%0: %s%s, %%1: %s%s, %%2: %s%s, %%3: %s%s, %%4: %s%s, %%5: i32[2], %%6: i32[]) {\n"
        " %%7: (%s%s, %s%s) = attention %%0, %%1, %%2%s %s\n"
        " %%8: %s%s = result %%7 {index=0}\n %%9: %s%s = result %%7 {index=1}\n"
        " %%10: (%s%s, %s%s, %s%s) = attention_vjp %%0, %%1, %%2, %%8, %%9, %%3, %%4%s %s\n"
        " %%11: %s%s = result %%10 {index=0}\n %%12: %s%s = result %%10 {index=1}\n %%13: %s%s = result %%10 {index=2}\n"
        " return %%8, %%9, %%11, %%12, %%13\n}\n",
        dtype, q, dtype, k, dtype, k, dtype, q, wide, l, dtype, q, wide, l, random, attributes, dtype, q, wide, l,
        wide, q, wide, k, wide, k, random, attributes, wide, q, wide, k, wide, k));
}

static ir_array *params_of_case(const ir_graph *graph, tensors *t)
{
    ir_array *in = arrays_for_params(graph);
    const tensor *from[] = { &t->q, &t->k, &t->v, &t->dout, &t->dlse, &t->seed, &t->counter };
    for (size_t i = 0; i < COUNT_OF(from); i++)
        copy_elements(&in[i], from[i]);
    return in;
}

static void check_decomposition(const attention_case *c)
{
    ir_graph *graph = graph_of_case(c);
    tensors t = make_tensors(c, true);
    ir_array *out = run_graph(graph, params_of_case(graph, &t));
    run_kernel(c, usual_scale(c), false, &t, 1);
    run_kernel(c, usual_scale(c), true, &t, 1);
    check_array(c, "out", &t.out, &out[0]);
    check_array(c, "lse", &t.lse, &out[1]);
    check_array(c, "dq", &t.dq, &out[2]);
    check_array(c, "dk", &t.dk, &out[3]);
    check_array(c, "dv", &t.dv, &out[4]);
}

static void attention_as_decomposed(void **state)
{
    (void)state;
    for (int dtype = 0; dtype < 3; dtype++)
        for (int causal = 0; causal < 2; causal++)
            for (int drops = 0; drops < 2; drops++)
                check_decomposition(&(attention_case){ .batch = 2,
                                                       .heads = 3,
                                                       .rows = 37,
                                                       .keys = 45,
                                                       .head_dim = 20,
                                                       .causal = causal,
                                                       .dropout = drops ? 0.3 : 0,
                                                       .dtype = (ir_dtype[]){ IR_F32, IR_BF16, IR_F64 }[dtype] });
}

/* A graph with both, left whole, through lowering, planning and linking. */
static void attention_through_the_backend(void **state)
{
    (void)state;
    ir_backend_settings settings = { .threads = 2, .cache_dir = "" };
    assert_true(cpu_backend.configure(&settings));
    for (int dtype = 0; dtype < 3; dtype++) {
        attention_case c = { .batch = 2,
                             .heads = 3,
                             .rows = 37,
                             .keys = 45,
                             .head_dim = 20,
                             .causal = true,
                             .dropout = dtype == 0 ? 0.3 : 0,
                             .dtype = (ir_dtype[]){ IR_F32, IR_BF16, IR_F64 }[dtype] };
        ir_graph *graph = graph_of_case(&c);
        tensors t = make_tensors(&c, true);
        ir_array *in = params_of_case(graph, &t), *expected = run_graph(graph, in), *got = arrays_for_results(graph);
        void *params[7], *results[5];
        for (int i = 0; i < 7; i++)
            params[i] = in[i].data;
        for (int i = 0; i < 5; i++)
            results[i] = got[i].data;
        ir_compile_report report = {0};
        ir_executable *program = cpu_backend.compile(graph, &(ir_compile_options){ .name = "attention", .verify = true },
                                                     &report);
        if (!program)
            fail_msg("%s", base_error());
        assert_true(cpu_backend.run(program, params, results));
        cpu_backend.free(program);
        base_text_free(&report.lines);
        for (int r = 0; r < 5; r++)
            for (int64_t i = 0; i < ir_type_count(&got[r].type); i++)
                assert_near(get(&got[r], i), get(&expected[r], i), tolerance_of(&c), "%s: result %d element %d",
                            describe(&c), r, (int)i);
    }
    cpu_backend.shutdown();
}

/* -- what the drawn cases do not reach ---------------------------------------------------------------------------------- */

/* Scores in the hundreds, whose maximum grows from block to block; scores that fall with k; all scores the same. */
static void attention_of_any_scale(void **state)
{
    (void)state;
    attention_case c = { .batch = 1, .heads = 2, .rows = 300, .keys = 300, .head_dim = 16, .causal = true };
    check_scaled(&c, 10, 1e-3);
    check_scaled(&c, -0.5, 3e-5);
    check_scaled(&c, 0, 2e-5);
}

/* Scores of which f32 knows no digit below a thousand: which key has the greatest is lost, but nothing becomes infinite. */
static void attention_of_far_scores(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        attention_case c = { .dtype = i ? IR_BF16 : IR_F32, .batch = 1, .heads = 2, .rows = 70, .keys = 70, .head_dim = 16, .causal = true };
        tensors t = make_tensors(&c, false);
        const struct { const char *name; tensor *of; double most; } all[] = { { "out", &t.out, 1.01 }, { "dq", &t.dq, 1e13 }, { "dk", &t.dk, 1e14 }, { "dv", &t.dv, 71 } };
        run_kernel(&c, 1e10, false, &t, 1);
        run_kernel(&c, 1e10, true, &t, 1);
        for (size_t j = 0; j < COUNT_OF(all); j++)
            for (int64_t k = 0; k < tensor_count(all[j].of); k++)
                if (!(fabs(get_element(all[j].of, k)) <= all[j].most))
                    fail_msg("%s: %s[%lld]: expected at most %g, got %g", describe(&c), all[j].name, (long long)k, all[j].most, get_element(all[j].of, k));
    }
}

/* Too many heads for keys to be split; so many that a task takes several. The first queries do not see the last block of keys. */
static void attention_of_many_heads(void **state)
{
    (void)state;
    for (int dtype = IR_F32; dtype <= IR_BF16; dtype++) {
        check_case(&(attention_case){
            .batch = 1, .heads = 9, .rows = 260, .keys = 260, .head_dim = 16, .causal = true, .dtype = dtype, .layout = 1 });
        check_case(&(attention_case){
            .batch = 10, .heads = 6, .rows = 131, .keys = 270, .head_dim = 8, .causal = true, .dtype = dtype, .layout = 1 });
        check_case(&(attention_case){
            .batch = 7, .heads = 5, .rows = 70, .keys = 70, .head_dim = 8, .dropout = 0.25, .dtype = dtype });
    }
}

/* Of keys that are split: queries of a panel that see none of the second part, although others do. */
static void attention_of_few_heads(void **state)
{
    (void)state;
    for (int dtype = IR_F32; dtype <= IR_BF16; dtype++) {
        check_case(&(attention_case){ .batch = 1, .heads = 2, .rows = 33, .keys = 260, .head_dim = 16, .causal = true, .dtype = dtype });
        check_case(&(attention_case){ .batch = 1, .heads = 1, .rows = 600, .keys = 610, .head_dim = 48, .causal = true, .dtype = dtype });
    }
}

/* No columns: all scores are 0. No rows: the gradients of k and v are 0. */
static void attention_of_nothing(void **state)
{
    (void)state;
    check_case(&(attention_case){ .batch = 1, .heads = 2, .rows = 5, .keys = 40, .head_dim = 0, .causal = true });
    check_case(&(attention_case){ .batch = 1, .heads = 2, .rows = 0, .keys = 40, .head_dim = 8, .causal = true });
    check_case(&(attention_case){ .batch = 0, .heads = 2, .rows = 3, .keys = 40, .head_dim = 8 });
}

static void same_tensor(const char *name, const attention_case *c, int threads, const tensor *a, const tensor *b)
{
    if (memcmp(a->data, b->data, a->bytes) != 0)
        fail_msg("%s: %s differs between 1 and %d threads", describe(c), name, threads);
}

static void same_bits_for_any_threads(void **state)
{
    (void)state;
    attention_case cases[] = {
        { .batch = 1, .heads = 1, .rows = 600, .keys = 600, .head_dim = 32, .causal = true, .dropout = 0.1, .layout = 1 },
        { .batch = 2, .heads = 5, .rows = 130, .keys = 150, .head_dim = 64, .causal = true, .layout = 1 },
        { .batch = 2, .heads = 2, .rows = 260, .keys = 260, .head_dim = 48, .dtype = IR_BF16, .dropout = 0.5 },
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        const attention_case *c = &cases[i];
        tensors one = make_tensors(c, false);
        run_kernel(c, usual_scale(c), false, &one, 1);
        run_kernel(c, usual_scale(c), true, &one, 1);
        for (int threads = 2; threads <= 7; threads += threads == 3 ? 4 : 1) {
            tensors many = make_tensors(c, false);
            run_kernel(c, usual_scale(c), false, &many, threads);
            run_kernel(c, usual_scale(c), true, &many, threads);
            same_tensor("out", c, threads, &one.out, &many.out);
            same_tensor("lse", c, threads, &one.lse, &many.lse);
            same_tensor("dq", c, threads, &one.dq, &many.dq);
            same_tensor("dk", c, threads, &one.dk, &many.dk);
            same_tensor("dv", c, threads, &one.dv, &many.dv);
        }
    }
}

/* -- dropout ------------------------------------------------------------------------------------------------------------ */

static void emit_keep(const void *context, const cpu_machine *machine, LLVMModuleRef module, const char *name)
{
    cpu_attention_emit_keep(module, machine->isa, context, name);
}

/* Elements beyond 2^34, whose counters have an upper word; lanes that begin at different words of their blocks. */
static void masks_of_philox(void **state)
{
    (void)state;
    static const int64_t firsts[] = { 0, 5, ((int64_t)1 << 34) - 70, ((int64_t)5 << 36) + 3 }, strides[] = { 1, 2, 64, 67 };
    const uint32_t threshold = 0x60000000;
    cpu_attention_class class = { .dtype = IR_F32 };
    const compiled_code *code = code_of(&(cpu_request){ .key = "keep", .emit = emit_keep, .context = &class, .name = "keep" });
    cpu_attention_piece *piece;
    void *at = cpu_code_find(code->code, "keep");
    memcpy(&piece, &at, sizeof at);
    int lanes = cpu_gemm_tile_of(test_machine()->isa, IR_F32).lanes;
    for (size_t f = 0; f < COUNT_OF(firsts); f++)
        for (size_t s = 0; s < COUNT_OF(strides); s++) {
            enum { KEYS = 7 };
            uint16_t keep[(KEYS + 1) * 2];
            cpu_attention_keep record = { .keep = keep,
                                          .keys = KEYS,
                                          .first = firsts[f],
                                          .query_stride = strides[s],
                                          .seed = { 3, 0xfffffff0 },
                                          .site = 5,
                                          .counter = 77,
                                          .threshold = threshold };
            piece(&record);
            for (int64_t key = 0; key < KEYS; key++)
                for (int query = 0; query < 2 * lanes; query++) {
                    int64_t i = firsts[f] + query * strides[s] + key;
                    uint32_t counter[] = { (uint32_t)(i >> 2), (uint32_t)(i >> 34), 5, 77 }, word[4];
                    ir_philox(counter, record.seed, word);
                    int kept = keep[key * 2 + query / lanes] >> query % lanes & 1;
                    if (kept != (word[i & 3] >= threshold))
                        fail_msg("first %lld stride %lld: query %d key %d: element %lld is %s", (long long)firsts[f],
                                 (long long)strides[s], query, (int)key, (long long)i, kept ? "kept" : "dropped");
                }
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        KERNEL_TEST(attention_amx),
        KERNEL_TEST(attention_avx512bf16),
        KERNEL_TEST(attention_avx512),
        KERNEL_TEST(attention_avx2),
        KERNEL_TEST(attention_generic),
        KERNEL_TEST(attention_as_decomposed),
        KERNEL_TEST(attention_through_the_backend),
        KERNEL_TEST(attention_of_any_scale), KERNEL_TEST(attention_of_far_scores),
        KERNEL_TEST(attention_of_few_heads),
        KERNEL_TEST(attention_of_many_heads),
        KERNEL_TEST(attention_of_nothing),
        KERNEL_TEST(same_bits_for_any_threads),
        KERNEL_TEST(masks_of_philox),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
