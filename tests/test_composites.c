/* Decompositions against plain C, written here a second time from the papers' formulas; random numbers against words of Philox; the passes that
 * know composites. Every composite of the op table has a test here, or the last one fails. */
#include "tests/graphs.h"

static bool was_run[IR_OPS];

static ir_array *run_noted(ir_graph *graph, const ir_array *params)
{
    for (const ir_node *n = graph->first; n; n = n->next)
        was_run[n->op] = true;
    return run_graph(graph, params);
}

static ir_array *params_of(const ir_graph *graph, uint64_t seed, double lo, double hi)
{
    dice d = { seed };
    ir_array *params = arrays_for_params(graph);
    for (int i = 0; i < graph->n_params; i++)
        fill(&params[i], &d, lo, hi);
    return params;
}

/* In units of the last place, more or less: results and operands are rounded, sums have under a hundred terms. */
static const struct { const char *name; double tolerance; } floats[] = { { "f32", 2e-6 }, { "f64", 1e-14 }, { "bf16", 0x1p-7 } };

/* -- by rows ------------------------------------------------------------------------------------------------------------- */

enum { ROWS = 6, COLUMNS = 13 };

static double maximum(const ir_array *x, int64_t at, int n)
{
    double max = -INFINITY;
    for (int j = 0; j < n; j++)
        max = fmax(max, get(x, at + j));
    return max;
}

static double log_sum_exp(const ir_array *x, int64_t at, int n)
{
    double max = maximum(x, at, n), sum = 0;
    for (int j = 0; j < n; j++)
        sum += exp(get(x, at + j) - max);
    return max + log(sum);
}

static void softmaxes(void **state)
{
    (void)state;
    for (size_t f = 0; f < COUNT_OF(floats); f++)
        for (int axis = 0; axis < 2; axis++) {
            const char *t = floats[f].name;
            ir_graph *g = graph_of(text_of("graph t(%%0: %s[6,13]) {\n %%1: %s[6,13] = softmax %%0 {axis=%d}\n %%2: %s[6,13] = log_softmax %%0 {axis=%d}\n"
                                           " return %%1, %%2\n}\n", t, t, axis, t, axis));
            ir_array *x = params_of(g, f + 1, -5, 5), *y = run_noted(g, x);
            for (int i = 0; i < (axis ? ROWS : COLUMNS); i++) {
                int n = axis ? COLUMNS : ROWS, stride = axis ? 1 : COLUMNS, first = axis ? i * COLUMNS : i;
                double max = -INFINITY, sum = 0;
                for (int j = 0; j < n; j++)
                    max = fmax(max, get(x, first + j * stride));
                for (int j = 0; j < n; j++)
                    sum += exp(get(x, first + j * stride) - max);
                for (int j = 0; j < n; j++) {
                    double shifted = get(x, first + j * stride) - max;
                    assert_near(get(&y[0], first + j * stride), exp(shifted) / sum, floats[f].tolerance, "%s softmax\n", t);
                    assert_near(get(&y[1], first + j * stride), shifted - log(sum), floats[f].tolerance, "%s log_softmax\n", t);
                }
            }
        }
    ir_array *large = run_text("graph t() {\n %0: f32[2] = literal {data=[3e38,3e38]}\n %1: f32[2] = softmax %0 {axis=0}\n"
                               " %2: f32[2] = literal {data=[-inf,1]}\n %3: f32[2] = softmax %2 {axis=0}\n return %1, %3\n}\n");
    assert_near(get(&large[0], 0), 0.5, 0, "no overflow\n");
    assert_near(get(&large[1], 0), 0, 0, "-inf has no share\n");
}

static void norms(void **state)
{
    (void)state;
    const double epsilon = 1e-3;
    for (size_t f = 0; f < COUNT_OF(floats); f++) {
        const char *t = floats[f].name;
        ir_graph *g = graph_of(text_of("graph t(%%0: %s[2,3,13], %%1: %s[13], %%2: %s[13]) {\n %%3: %s[2,3,13] = layer_norm %%0, %%1, %%2 {epsilon=0.001}\n"
                                       " %%4: %s[2,3,13] = layer_norm %%0, %%1 {epsilon=0.001}\n %%5: %s[2,3,13] = rms_norm %%0, %%1 {epsilon=0.001}\n"
                                       " return %%3, %%4, %%5\n}\n", t, t, t, t, t, t));
        ir_array *in = params_of(g, f + 1, -2, 2), *y = run_noted(g, in);
        for (int i = 0; i < ROWS; i++) {
            double mean = 0, variance = 0, square = 0;
            for (int j = 0; j < COLUMNS; j++)
                mean += get(&in[0], i * COLUMNS + j) / COLUMNS;
            for (int j = 0; j < COLUMNS; j++) {
                variance += pow(get(&in[0], i * COLUMNS + j) - mean, 2) / COLUMNS;
                square += pow(get(&in[0], i * COLUMNS + j), 2) / COLUMNS;
            }
            for (int j = 0; j < COLUMNS; j++) {
                int at = i * COLUMNS + j;
                double x = get(&in[0], at), w = get(&in[1], j), normal = (x - mean) / sqrt(variance + epsilon) * w;
                assert_near(get(&y[0], at), normal + get(&in[2], j), floats[f].tolerance, "%s layer_norm\n", t);
                assert_near(get(&y[1], at), normal, floats[f].tolerance, "%s layer_norm without bias\n", t);
                assert_near(get(&y[2], at), x / sqrt(square + epsilon) * w, floats[f].tolerance, "%s rms_norm\n", t);
            }
        }
    }
}

static void activations(void **state)
{
    (void)state;
    for (size_t f = 0; f < COUNT_OF(floats); f++) {
        const char *t = floats[f].name;
        ir_graph *g = graph_of(text_of("graph t(%%0: %s[50]) {\n %%1: %s[50] = gelu %%0\n %%2: %s[50] = silu %%0\n return %%1, %%2\n}\n", t, t, t));
        ir_array *in = params_of(g, f + 1, -4, 4), *y = run_noted(g, in);
        for (int i = 0; i < 50; i++) {
            double x = get(in, i);
            assert_near(get(&y[0], i), x / 2 * (1 + tanh(sqrt(2 / acos(-1)) * (x + 0.044715 * x * x * x))), floats[f].tolerance, "%s gelu\n", t);
            assert_near(get(&y[1], i), x / (1 + exp(-x)), floats[f].tolerance, "%s silu\n", t);
        }
    }
}

static void one_hot(void **state)
{
    (void)state;
    ir_graph *g = graph_of("graph t() {\n %0: i32[2,2] = literal {data=[0,2,-1,3]}\n %1: f32[2,2,3] = one_hot %0\n %2: bool[2,2,3] = one_hot %0\n"
                           " %3: i32[2,2,3] = one_hot %0\n return %1, %2, %3\n}\n");
    ir_array *y = run_noted(g, NULL);
    for (int r = 0; r < 3; r++)
        for (int i = 0; i < 12; i++)
            assert_near(get(&y[r], i), i == 0 || i == 5, 0, "result %d, element %d\n", r, i);
}

/* -- losses ------------------------------------------------------------------------------------------------------------- */

static void cross_entropies(void **state)
{
    (void)state;
    for (size_t f = 0; f < COUNT_OF(floats); f++) {
        const char *t = floats[f].name;
        ir_graph *g = graph_of(text_of("graph t(%%0: %s[6,13]) {\n %%1: i32[6] = literal {data=[0,12,5,5,-1,13]}\n %%2: %s[6] = cross_entropy %%0, %%1\n"
                                       " return %%2\n}\n", t, t));
        static const int target[] = { 0, 12, 5, 5, -1, 13 };
        ir_array *x = params_of(g, f + 1, -4, 4), *loss = run_noted(g, x);
        for (int i = 0; i < ROWS; i++) {
            bool hit = target[i] >= 0 && target[i] < COLUMNS;
            double expected = log_sum_exp(x, i * COLUMNS, COLUMNS) - (hit ? get(x, i * COLUMNS + target[i]) : 0);
            assert_near(get(loss, i), expected, floats[f].tolerance, "%s row %d\n", t, i);
        }
    }
}

/* Loss and gradients of the rows of x, in f64 from the operands as they are rounded. */
static void check_linear_cross_entropy(const char *dtype, int n, int v, double tolerance)
{
    enum { C = 3 };
    const char *wide = strcmp(dtype, "f64") ? "f32" : "f64";
    ir_graph *g = graph_of(text_of(
        "graph t(%%0: %s[%d,3], %%1: %s[%d,3], %%2: i32[%d], %%3: %s[%d]) {\n %%4: %s[%d] = linear_cross_entropy %%0, %%1, %%2\n"
        " %%5: (%s[%d], %s[%d,3], %s[%d,3]) = linear_cross_entropy_vjp %%0, %%1, %%2, %%3\n %%6: %s[%d] = result %%5 {index=0}\n"
        " %%7: %s[%d,3] = result %%5 {index=1}\n %%8: %s[%d,3] = result %%5 {index=2}\n return %%4, %%6, %%7, %%8\n}\n",
        dtype, n, dtype, v, n, wide, n, wide, n, wide, n, wide, n, wide, v, wide, n, wide, n, wide, v));
    ir_array *in = params_of(g, 3, -1, 1);
    for (int i = 0; i < n; i++)
        put(&in[2], i, i % 5 == 4 ? -1 : i * 7919 % v);
    ir_array *out = run_noted(g, in), logits = array_of(ir_type_of(IR_F64, 1, (int64_t[]){ v }));
    double *dw = room(sizeof *dw * (size_t)v * C);
    for (int i = 0; i < n; i++) {
        int target = (int)get(&in[2], i);
        double dx[C] = { 0 };
        for (int j = 0; j < v; j++) {
            double sum = 0;
            for (int c = 0; c < C; c++)
                sum += get(&in[0], i * C + c) * get(&in[1], j * C + c);
            put(&logits, j, sum);
        }
        double lse = log_sum_exp(&logits, 0, v), loss = lse - (target >= 0 ? get(&logits, target) : 0);
        assert_near(get(&out[0], i), loss, tolerance, "%s loss %d of %d\n", dtype, i, n);
        assert_near(get(&out[1], i), loss, tolerance, "%s loss with its gradient %d of %d\n", dtype, i, n);
        for (int j = 0; j < v; j++) {
            double d = (exp(get(&logits, j) - lse) - (j == target)) * get(&in[3], i);
            for (int c = 0; c < C; c++) {
                dx[c] += d * get(&in[1], j * C + c);
                dw[j * C + c] += d * get(&in[0], i * C + c);
            }
        }
        for (int c = 0; c < C; c++)
            assert_near(get(&out[2], i * C + c), dx[c], tolerance, "%s dx[%d,%d]\n", dtype, i, c);
    }
    for (int j = 0; j < v * C; j++)
        assert_near(get(&out[3], j), dw[j], tolerance, "%s dweight %d\n", dtype, j);
}

/* One piece; whole chunks; chunks and a rest; chunks of one row. The tolerance of bf16 is its rounding of dlogits; that
 * of f32, chains of as many sums as there are classes. */
static void linear_cross_entropies(void **state)
{
    (void)state;
    for (size_t f = 0; f < COUNT_OF(floats); f++)
        check_linear_cross_entropy(floats[f].name, 11, 17, f == 2 ? 2e-2 : 10 * floats[f].tolerance);
    check_linear_cross_entropy("f32", 1, 1, 1e-6);
    int64_t usual = ir_logits_bytes;
    ir_logits_bytes = 17 * 4 * 101;                       /* 17 rows of 101 */
    check_linear_cross_entropy("f32", 32, 101, 1e-5);
    check_linear_cross_entropy("f64", 37, 101, 1e-12);
    check_linear_cross_entropy("bf16", 33, 101, 2e-2);
    check_linear_cross_entropy("f32", 2, 5000, 1e-5);
    ir_logits_bytes = usual;
}

static bool keep_all(const ir_node *node) { (void)node; return true; }
static bool keep_losses(const ir_node *node) { return node->op == OP_linear_cross_entropy || node->op == OP_linear_cross_entropy_vjp; }

static int count_ops(const ir_graph *graph, ir_op op)
{
    int count = 0;
    for (const ir_node *n = graph->first; n; n = n->next)
        count += n->op == op;
    return count;
}

/* The loss of a mean comes from the node of its gradient, which moves to where the loss was needed; the loss of a square does not, for
 * its gradient depends on it. */
static void one_loss_is_enough(void **state)
{
    (void)state;
    for (int squared = 0; squared < 2; squared++) {
        ir_graph *g = graph_of(text_of(
            "graph t(%%0: f32[6,3], %%1: f32[7,3]) {\n %%2: i32[6] = literal {data=[0,6,5,5,-1,3]}\n %%3: f32[6] = linear_cross_entropy %%0, %%1, %%2\n"
            " %%4: f32[6] = %s\n %%5: f32[] = reduce_sum %%4 {axes=[0]}\n return %%5\n}\n", squared ? "mul %3, %3" : "neg %3"));
        ir_node *results[3] = { g->results[0] };
        ir_gradient(g, results[0], 2, g->params, results + 1);
        ir_set_results(g, 3, results, NULL);
        ir_array *in = params_of(g, 8, -1, 1), *before = run_noted(g, in);
        ir_pass_options options = { .verify = true, .keep_composite = keep_losses };
        ir_run_passes(g, &options);
        ir_pass_reports_free(&options);
        assert_int_equal(count_ops(g, OP_linear_cross_entropy), squared);
        assert_int_equal(count_ops(g, OP_linear_cross_entropy_vjp), 1);
        ir_array *after = run_noted(g, in);
        for (int r = 0; r < 3; r++)
            for (int64_t i = 0; i < ir_type_count(&before[r].type); i++)
                assert_near(get(&after[r], i), get(&before[r], i), 1e-6, "result %d, element %d\n", r, (int)i);
    }
}

/* -- attention ---------------------------------------------------------------------------------------------------------- */

/* Two heads of q[3,4] and k, v[5,4]. Whether a weight of the head is kept is asked of Philox here, not of the op. */
static bool is_kept(int64_t i, double p)
{
    uint32_t word[4];
    ir_philox((uint32_t[]){ (uint32_t)(i / 4), 0, 21, 9 }, (uint32_t[]){ 7, 8 }, word);
    return (double)word[i % 4] >= floor(p * 4294967296.0);
}

static ir_graph *attention_graph(const char *dtype, bool causal, double dropout)
{
    const char *wide = strcmp(dtype, "f64") ? "f32" : "f64", *truth = causal ? "true" : "false";
    return graph_of(text_of(
        "graph t(%%0: %s[1,2,3,4], %%1: %s[1,2,5,4], %%2: %s[1,2,5,4], %%3: %s[1,2,3,4], %%4: %s[1,2,3]) {\n"
        " %%5: i32[2] = literal {data=[7,8]}\n %%6: i32[] = constant {value=9}\n"
        " %%7: (%s[1,2,3,4], %s[1,2,3]) = attention %%0, %%1, %%2%s {causal=%s, scale=0.5, dropout=%g, site=21}\n"
        " %%8: %s[1,2,3,4] = result %%7 {index=0}\n %%9: %s[1,2,3] = result %%7 {index=1}\n"
        " %%10: (%s[1,2,3,4], %s[1,2,5,4], %s[1,2,5,4]) = attention_vjp %%0, %%1, %%2, %%8, %%9, %%3, %%4%s {causal=%s, scale=0.5, dropout=%g, site=21}\n"
        " %%11: %s[1,2,3,4] = result %%10 {index=0}\n %%12: %s[1,2,5,4] = result %%10 {index=1}\n %%13: %s[1,2,5,4] = result %%10 {index=2}\n"
        " return %%8, %%9, %%11, %%12, %%13\n}\n",
        dtype, dtype, dtype, dtype, wide, dtype, wide, dropout > 0 ? ", %5, %6" : "", truth, dropout, dtype, wide, wide, wide, wide,
        dropout > 0 ? ", %5, %6" : "", truth, dropout, wide, wide, wide));
}

static void check_attention(const char *dtype, bool causal, double dropout, double tolerance)
{
    enum { H = 2, T = 3, S = 5, D = 4 };
    const double scale = 0.5;
    ir_graph *g = attention_graph(dtype, causal, dropout);
    ir_array *in = params_of(g, 12, -1, 1), *out = run_noted(g, in);
    for (int h = 0; h < H; h++) {
        double p[T][S], kept[T][S], y[T][D], dk[S][D] = { { 0 } }, dv[S][D] = { { 0 } };
        for (int i = 0; i < T; i++) {
            double sum = 0, dq[D] = { 0 }, delta = 0;
            for (int j = 0; j < S; j++) {
                double score = 0;
                for (int d = 0; d < D; d++)
                    score += scale * get(&in[0], (h * T + i) * D + d) * get(&in[1], (h * S + j) * D + d);
                p[i][j] = causal && j > i + S - T ? 0 : exp(score);
                sum += p[i][j];
            }
            assert_near(get(&out[1], h * T + i), log(sum), tolerance, "%s lse\n", dtype);
            for (int d = 0; d < D; d++)
                y[i][d] = 0;
            for (int j = 0; j < S; j++) {
                p[i][j] /= sum;
                kept[i][j] = dropout == 0 ? 1 : is_kept((h * T + i) * S + j, dropout) ? 1 / (1 - dropout) : 0;
                for (int d = 0; d < D; d++)
                    y[i][d] += p[i][j] * kept[i][j] * get(&in[2], (h * S + j) * D + d);
            }
            for (int d = 0; d < D; d++) {
                assert_near(get(&out[0], (h * T + i) * D + d), y[i][d], tolerance, "%s out[%d,%d,%d]\n", dtype, h, i, d);
                delta += get(&in[3], (h * T + i) * D + d) * y[i][d];
            }
            for (int j = 0; j < S; j++) {
                double dp = 0;
                for (int d = 0; d < D; d++) {
                    double dout = get(&in[3], (h * T + i) * D + d);
                    dp += dout * get(&in[2], (h * S + j) * D + d) * kept[i][j];
                    dv[j][d] += dout * p[i][j] * kept[i][j];
                }
                double dscore = p[i][j] * (dp - delta + get(&in[4], h * T + i)) * scale;
                for (int d = 0; d < D; d++) {
                    dq[d] += dscore * get(&in[1], (h * S + j) * D + d);
                    dk[j][d] += dscore * get(&in[0], (h * T + i) * D + d);
                }
            }
            for (int d = 0; d < D; d++)
                assert_near(get(&out[2], (h * T + i) * D + d), dq[d], tolerance, "%s dq[%d,%d,%d]\n", dtype, h, i, d);
        }
        for (int j = 0; j < S; j++)
            for (int d = 0; d < D; d++) {
                assert_near(get(&out[3], (h * S + j) * D + d), dk[j][d], tolerance, "%s dk[%d,%d,%d]\n", dtype, h, j, d);
                assert_near(get(&out[4], (h * S + j) * D + d), dv[j][d], tolerance, "%s dv[%d,%d,%d]\n", dtype, h, j, d);
            }
    }
}

static void attention(void **state)
{
    (void)state;
    for (size_t f = 0; f < COUNT_OF(floats); f++)
        for (int causal = 0; causal < 2; causal++)
            for (int drops = 0; drops < 2; drops++)
                check_attention(floats[f].name, causal, drops ? 0.25 : 0, f == 2 ? 0x1p-5 : 2 * floats[f].tolerance);
}

/* -- random ------------------------------------------------------------------------------------------------------------- */

static char *random_text(const char *op, const char *dtype, int n, const char *value)
{
    return text_of("graph t() {\n %%0: i32[2] = literal {data=[3,4]}\n %%1: i32[] = constant {value=5}\n"
                   " %%2: %s[%d] = %s %%0, %%1 {%ssite=6}\n return %%2\n}\n", dtype, n, op, value);
}

static uint32_t word_of(int64_t i)
{
    uint32_t word[4];
    ir_philox((uint32_t[]){ (uint32_t)(i / 4), 0, 6, 5 }, (uint32_t[]){ 3, 4 }, word);
    return word[i % 4];
}

static void uniform_and_bernoulli_take_their_words(void **state)
{
    (void)state;
    enum { N = 4001 };
    ir_array *u = run_noted(graph_of(random_text("random_uniform", "f32", N, "")), NULL);
    ir_array *wide = run_noted(graph_of(random_text("random_uniform", "f64", N, "")), NULL);
    ir_array *half = run_noted(graph_of(random_text("random_uniform", "bf16", N, "")), NULL);
    for (int i = 0; i < N; i++) {
        double expected = (word_of(i) >> 8) * 0x1p-24;
        assert_near(get(u, i), expected, 0, "element %d\n", i);
        assert_near(get(wide, i), expected, 0, "element %d in f64\n", i);
        assert_near(get(half, i), expected, 0x1p-8, "element %d in bf16\n", i);
        assert_true(get(half, i) < 1);
    }
    static const double ps[] = { 0, 0.1, 0.5, 0.9, 1 };
    for (size_t k = 0; k < COUNT_OF(ps); k++) {
        ir_array *keep_mask = run_noted(graph_of(random_text("bernoulli", "bool", N, text_of("value=%g, ", ps[k]))), NULL);
        int kept = 0;
        for (int i = 0; i < N; i++) {
            assert_near(get(keep_mask, i), (double)word_of(i) >= floor(ps[k] * 4294967296.0), 0, "p %g, element %d\n", ps[k], i);
            kept += (int)get(keep_mask, i);
        }
        assert_near(kept / (double)N, 1 - ps[k], 0.03, "share kept\n");
    }
}

/* Of a million: moments within five standard errors, and the tails that a 23-bit uniform can have. */
static void normal_is_normal(void **state)
{
    (void)state;
    enum { N = 1000000 };
    ir_array *x = run_noted(graph_of(random_text("random_normal", "f32", N, "")), NULL);
    double sum[5] = { 0 }, largest = 0;
    for (int i = 0; i < N; i++) {
        double v = get(x, i), power = v;
        assert_true(isfinite(v));
        for (int m = 1; m <= 4; m++, power *= v)
            sum[m] += power / N;
        largest = fmax(largest, fabs(v));
    }
    assert_near(sum[1], 0, 5e-3, "mean\n");
    assert_near(sum[2], 1, 7e-3, "variance\n");
    assert_near(sum[3], 0, 2e-2, "skewness\n");
    assert_near(sum[4], 3, 2e-2, "kurtosis\n");
    assert_true(largest > 4.3 && largest < 5.4);
    ir_array *exact = run_noted(graph_of(random_text("random_normal", "f64", 100, "")), NULL);
    for (int i = 0; i < 100; i++)
        assert_near(erf(get(exact, i) / sqrt(2)), 2 * ((word_of(i) >> 9) + 0.5) * 0x1p-23 - 1, 1e-15, "element %d\n", i);
}

/* -- optimizer ---------------------------------------------------------------------------------------------------------- */

static void adamw(void **state)
{
    (void)state;
    ir_graph *g = graph_of("graph t(%0: f64[7], %1: f64[7], %2: f64[7], %3: f64[7], %4: f64[], %5: f64[], %6: f64[], %7: f64[], %8: f64[],\n"
                           "        %9: f64[], %10: f64[]) {\n %11: (f64[7], f64[7], f64[7]) = adamw %0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10\n"
                           " %12: f64[7] = result %11 {index=0}\n %13: f64[7] = result %11 {index=1}\n %14: f64[7] = result %11 {index=2}\n"
                           " return %12, %13, %14\n}\n");
    ir_array *in = params_of(g, 1, 0.1, 1);
    const double lr = 1e-2, b1 = 0.9, b2 = 0.95, epsilon = 1e-8, decay = 0.1, c1 = 1 - pow(b1, 3), c2 = 1 - pow(b2, 3);
    const double scalars[] = { lr, b1, b2, epsilon, decay, c1, c2 };
    for (size_t i = 0; i < COUNT_OF(scalars); i++)
        put(&in[4 + i], 0, scalars[i]);
    ir_array *out = run_noted(g, in);
    for (int i = 0; i < 7; i++) {
        double w = get(&in[0], i), m = get(&in[1], i), v = get(&in[2], i), dw = get(&in[3], i);
        w *= 1 - lr * decay;
        m = b1 * m + (1 - b1) * dw;
        v = b2 * v + (1 - b2) * dw * dw;
        w -= lr * (m / c1) / (sqrt(v / c2) + epsilon);
        assert_near(get(&out[0], i), w, 1e-14, "w\n");
        assert_near(get(&out[1], i), m, 1e-14, "m\n");
        assert_near(get(&out[2], i), v, 1e-14, "v\n");
    }
}

/* -- the pass ----------------------------------------------------------------------------------------------------------- */

static bool keep_gelu(const ir_node *node) { return node->op == OP_gelu; }

static void what_a_backend_keeps_stays(void **state)
{
    (void)state;
    ir_graph *g = graph_of("graph t(%0: f32[3]) {\n %1: f32[3] = gelu %0\n %2: f32[3] = silu %1\n %3: f32[3] = softmax %2 {axis=0}\n return %3, %1\n}\n");
    ir_pass_context context = { .keep_composite = keep_all };
    ir_pass_decompose(g, &context);
    assert_int_equal(ir_count_nodes(g), 4);
    assert_int_equal(context.note.len, 0);
    context.keep_composite = keep_gelu;
    ir_pass_decompose(g, &context);
    check_graph(g);
    assert_int_equal(count_ops(g, OP_gelu), 1);
    assert_int_equal(count_ops(g, OP_silu) + count_ops(g, OP_softmax), 0);
    assert_string_equal(context.note.at, "2 decomposed");
    base_text_free(&context.note);
}

/* Of two parameters of one shape: 1 - beta1, 1 - beta2, 1 - lr decay, rsqrt(c2), lr/c1, and the eight scalars broadcast stand there once. */
static void updates_share_their_scalars(void **state)
{
    (void)state;
    ir_graph *g = graph_of("graph t(%0: f32[7], %1: f32[7], %2: f32[7], %3: f32[7], %4: f32[], %5: f32[], %6: f32[], %7: f32[], %8: f32[], %9: f32[], %10: f32[]) {\n"
                           " %11: (f32[7], f32[7], f32[7]) = adamw %0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10\n %12: f32[7] = result %11 {index=0}\n"
                           " %13: (f32[7], f32[7], f32[7]) = adamw %1, %0, %2, %3, %4, %5, %6, %7, %8, %9, %10\n %14: f32[7] = result %13 {index=0}\n"
                           " return %12, %14\n}\n");
    ir_pass_context context = {0};
    ir_pass_decompose(g, &context);
    check_graph(g);
    assert_int_equal(count_ops(g, OP_constant), 1);
    assert_int_equal(count_ops(g, OP_rsqrt), 1);
    assert_int_equal(count_ops(g, OP_broadcast), 8);
    assert_int_equal(count_ops(g, OP_sqrt), 2);
    base_text_free(&context.note);
}

/* The gradient of each repeats what the forward computes, and CSE finds it: of each costly op there is one. */
static void forward_and_gradient_share(void **state)
{
    (void)state;
    static const struct { const char *line; ir_op once; } rows[] = {
        { "gelu %0", OP_sigmoid }, { "softmax %0 {axis=1}", OP_exp }, { "log_softmax %0 {axis=1}", OP_exp }, { "layer_norm %0, %1 {epsilon=1e-05}", OP_rsqrt },
    };
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        ir_graph *g = graph_of(text_of("graph t(%%0: f32[4,6], %%1: f32[6]) {\n %%2: f32[4,6] = %s\n %%3: f32[] = reduce_sum %%2 {axes=[0,1]}\n"
                                       " return %%2, %%3\n}\n", rows[i].line));
        ir_node *results[3] = { g->results[0] };
        ir_gradient(g, g->results[1], 2, g->params, results + 1);
        ir_set_results(g, 3, results, NULL);
        ir_pass_options options = { .verify = true };
        ir_run_passes(g, &options);
        ir_pass_reports_free(&options);
        assert_int_equal(count_ops(g, rows[i].once), 1);
    }
}

static void every_composite_was_run(void **state)
{
    (void)state;
    for (int op = 0; op < IR_OPS; op++)
        if (ir_op_table[op].class == IR_COMPOSITE && !was_run[op])
            fail_msg("%s: no test of this file runs it", OP_NAME(op));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        GRAPH_TEST(softmaxes), GRAPH_TEST(norms), GRAPH_TEST(activations), GRAPH_TEST(one_hot), GRAPH_TEST(cross_entropies),
        GRAPH_TEST(linear_cross_entropies), GRAPH_TEST(one_loss_is_enough), GRAPH_TEST(attention),
        GRAPH_TEST(uniform_and_bernoulli_take_their_words), GRAPH_TEST(normal_is_normal), GRAPH_TEST(adamw), GRAPH_TEST(updates_share_their_scalars),
        GRAPH_TEST(what_a_backend_keeps_stays), GRAPH_TEST(forward_and_gradient_share),
        cmocka_unit_test(every_composite_was_run),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
