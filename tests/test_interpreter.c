/* The interpreter against plain C and plain arithmetic: every op that is no composite, in every dtype that it takes; what happens at the
 * edges of i32 and of floats; scans; memory. */
#include "tests/graphs.h"

/* Ops seen by a run of one of these tests: the last test looks for those that none ran. */
static bool was_run[IR_OPS];

static void note_ops(const ir_graph *graph)
{
    for (const ir_node *n = graph->first; n; n = n->next) {
        was_run[n->op] = true;
        if (n->attr.body)
            note_ops(n->attr.body);
    }
}

static ir_array *run_noted(ir_graph *graph, const ir_array *params)
{
    note_ops(graph);
    return run_graph(graph, params);
}

static ir_array *results_of(const char *text) { return run_noted(graph_of(text), NULL); }

static void expect(const ir_array *got, int n, const double *expected, const char *what)
{
    assert_int_equal(ir_type_count(&got->type), n);
    for (int i = 0; i < n; i++)
        assert_near(get(got, i), expected[i], 0, "%s, element %d\n", what, i);
}

#define EXPECT(array, what, ...) expect(array, (int)COUNT_OF(((double[]){ __VA_ARGS__ })), (double[]){ __VA_ARGS__ }, what)

/* -- elementwise -------------------------------------------------------------------------------------------------------- */

static double sign_of(double x) { return x > 0 ? 1 : x < 0 ? -1 : x; }
static double negative(double x) { return -x; }
static double rsqrt_of(double x) { return 1 / sqrt(x); }
static double sigmoid_of(double x) { return 1 / (1 + exp(-x)); }

static const struct { const char *op; double (*function)(double); double lo, hi; } unary[] = {
    { "neg", negative, -3, 3 }, { "abs", fabs, -3, 3 }, { "sign", sign_of, -3, 3 }, { "floor", floor, -3, 3 }, { "exp", exp, -3, 3 },
    { "log", log, 0.1, 9 }, { "sqrt", sqrt, 0, 9 }, { "rsqrt", rsqrt_of, 0.1, 9 }, { "tanh", tanh, -3, 3 }, { "sigmoid", sigmoid_of, -9, 9 },
    { "sin", sin, -9, 9 }, { "cos", cos, -9, 9 }, { "erf", erf, -3, 3 },
};

static double add(double x, double y) { return x + y; }
static double sub(double x, double y) { return x - y; }
static double mul(double x, double y) { return x * y; }
static double quotient(double x, double y) { return x / y; }

static const struct { const char *op; double (*function)(double, double); double lo, hi; } binary[] = {
    { "add", add, -3, 3 }, { "sub", sub, -3, 3 }, { "mul", mul, -3, 3 }, { "div", quotient, -3, 3 }, { "rem", fmod, -3, 3 },
    { "pow", pow, 0.1, 3 }, { "max", fmax, -3, 3 }, { "min", fmin, -3, 3 },
};

static const struct { const char *name; ir_dtype dtype; double rounding; } floats[] = {
    { "f32", IR_F32, 0x1p-21 }, { "f64", IR_F64, 0x1p-50 }, { "bf16", IR_BF16, 0x1p-8 },
};

static void float_functions(void **state)
{
    (void)state;
    dice d = { 1 };
    for (size_t f = 0; f < COUNT_OF(floats); f++) {
        const char *t = floats[f].name;
        for (size_t i = 0; i < COUNT_OF(unary); i++) {
            ir_graph *g = graph_of(text_of("graph t(%%0: %s[3,7]) {\n %%1: %s[3,7] = %s %%0\n return %%1\n}\n", t, t, unary[i].op));
            ir_array *x = arrays_for_params(g);
            fill(x, &d, unary[i].lo, unary[i].hi);
            ir_array *y = run_noted(g, x);
            for (int e = 0; e < 21; e++)
                assert_near(get(y, e), unary[i].function(get(x, e)), floats[f].rounding, "%s %s(%g)\n", t, unary[i].op, get(x, e));
        }
        for (size_t i = 0; i < COUNT_OF(binary); i++) {
            ir_graph *g = graph_of(text_of("graph t(%%0: %s[21], %%1: %s[21]) {\n %%2: %s[21] = %s %%0, %%1\n return %%2\n}\n", t, t, t, binary[i].op));
            ir_array *x = arrays_for_params(g);
            fill(&x[0], &d, binary[i].lo, binary[i].hi);
            fill(&x[1], &d, binary[i].lo, binary[i].hi);
            ir_array *y = run_noted(g, x);
            for (int e = 0; e < 21; e++)
                assert_near(get(y, e), binary[i].function(get(&x[0], e), get(&x[1], e)), floats[f].rounding, "%s %s(%g, %g)\n", t,
                            binary[i].op, get(&x[0], e), get(&x[1], e));
        }
    }
}

static void inverse_error_function(void **state)
{
    (void)state;
    ir_graph *g = graph_of("graph t(%0: f64[2001]) {\n %1: f64[2001] = erf_inv %0\n return %1\n}\n");
    ir_array *y = arrays_for_params(g);
    for (int i = 0; i <= 2000; i++)
        put(y, i, (i - 1000) / 1000.0);
    put(y, 1, -1 + 0x1p-53);
    put(y, 1999, 1 - 0x1p-53);
    ir_array *x = run_noted(g, y);
    assert_true(isinf(get(x, 0)) && get(x, 0) < 0 && isinf(get(x, 2000)));
    for (int i = 1; i < 2000; i++) {
        double found = get(x, i), wanted = get(y, i);
        if (fabs(wanted) < 0.9)
            assert_near(erf(found), wanted, 1e-15, "erf(erf_inv(%g))\n", wanted);
        else
            assert_near(erfc(fabs(found)) / (1 - fabs(wanted)), 1, 1e-13, "erfc(erf_inv(%g))\n", wanted);
    }
    ir_array *outside = results_of("graph t() {\n %0: f32[3] = literal {data=[1.5,-2,nan]}\n %1: f32[3] = erf_inv %0\n return %1\n}\n");
    EXPECT(outside, "erf_inv outside of [-1, 1]", NAN, NAN, NAN);
}

static void nan_and_zero(void **state)
{
    (void)state;
    ir_array *r = results_of("graph t() {\n %0: f32[4] = literal {data=[nan,1,nan,inf]}\n %1: f32[4] = literal {data=[1,nan,nan,-inf]}\n"
                             " %2: f32[4] = max %0, %1\n %3: f32[4] = min %0, %1\n %4: bool[4] = eq %0, %1\n %5: bool[4] = ne %0, %1\n"
                             " %6: bool[4] = lt %0, %1\n %7: bool[4] = le %1, %0\n %8: f32[4] = sign %0\n %9: f32[] = reduce_max %0 {axes=[0]}\n"
                             " %10: i32[] = argmax %0 {axis=0}\n return %2, %3, %4, %5, %6, %7, %8, %9, %10\n}\n");
    EXPECT(&r[0], "max", NAN, NAN, NAN, INFINITY);
    EXPECT(&r[1], "min", NAN, NAN, NAN, -INFINITY);
    EXPECT(&r[2], "eq", 0, 0, 0, 0);
    EXPECT(&r[3], "ne", 1, 1, 1, 1);
    EXPECT(&r[4], "lt", 0, 0, 0, 0);
    EXPECT(&r[5], "le", 0, 0, 0, 1);
    EXPECT(&r[6], "sign", NAN, 1, NAN, 1);
    EXPECT(&r[7], "reduce_max", NAN);
    EXPECT(&r[8], "argmax", 0);
}

static void integers_wrap(void **state)
{
    (void)state;
    ir_array *r = results_of(
        "graph t() {\n %0: i32[6] = literal {data=[2147483647,-2147483648,-2147483648,7,-7,5]}\n %1: i32[6] = literal {data=[1,-1,1,0,2,-3]}\n"
        " %2: i32[6] = add %0, %1\n %3: i32[6] = sub %0, %1\n %4: i32[6] = mul %0, %1\n %5: i32[6] = div %0, %1\n %6: i32[6] = rem %0, %1\n"
        " %7: i32[6] = neg %0\n %8: i32[6] = abs %0\n %9: i32[6] = sign %0\n %10: i32[6] = max %0, %1\n %11: i32[6] = min %0, %1\n"
        " %12: i32[] = reduce_sum %0 {axes=[0]}\n %13: i32[] = reduce_max %0 {axes=[0]}\n %14: i32[] = argmax %0 {axis=0}\n"
        " return %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14\n}\n");
    EXPECT(&r[0], "add", INT32_MIN, INT32_MAX, -2147483647.0, 7, -5, 2);
    EXPECT(&r[1], "sub", 2147483646, -2147483647.0, INT32_MAX, 7, -9, 8);
    EXPECT(&r[2], "mul", INT32_MAX, INT32_MIN, INT32_MIN, 0, -14, -15);
    EXPECT(&r[3], "div", INT32_MAX, INT32_MIN, INT32_MIN, 0, -3, -1);
    EXPECT(&r[4], "rem", 0, 0, 0, 0, -1, 2);
    EXPECT(&r[5], "neg", -2147483647.0, INT32_MIN, INT32_MIN, -7, 7, -5);
    EXPECT(&r[6], "abs", INT32_MAX, INT32_MIN, INT32_MIN, 7, 7, 5);
    EXPECT(&r[7], "sign", 1, -1, -1, 1, -1, 1);
    EXPECT(&r[8], "max", INT32_MAX, -1, 1, 7, 2, 5);
    EXPECT(&r[9], "min", 1, INT32_MIN, INT32_MIN, 0, -7, -3);
    EXPECT(&r[10], "reduce_sum", -2147483644.0);
    EXPECT(&r[11], "reduce_max", INT32_MAX);
    EXPECT(&r[12], "argmax", 0);
}

static void casts(void **state)
{
    (void)state;
    ir_array *r = results_of(
        "graph t() {\n %0: f64[8] = literal {data=[1.9,-1.9,1e10,-1e10,nan,inf,0,-0.25]}\n %1: i32[8] = cast %0\n %2: bool[8] = cast %0\n"
        " %3: f32[4] = literal {data=[1.00390625,1.01171875,-1.00390625,3.4028235e38]}\n %4: bf16[4] = cast %3\n %5: f32[4] = cast %4\n"
        " %6: bool[2] = literal {data=[true,false]}\n %7: f32[2] = cast %6\n %8: i32[2] = cast %6\n %9: i32[1] = literal {data=[16777217]}\n"
        " %10: f32[1] = cast %9\n %11: f64[1] = cast %9\n %12: bool[1] = cast %9\n %13: bf16[1] = cast %9\n"
        " return %1, %2, %5, %7, %8, %10, %11, %12, %13\n}\n");
    EXPECT(&r[0], "f64 to i32", 1, -1, INT32_MAX, INT32_MIN, 0, INT32_MAX, 0, 0);
    EXPECT(&r[1], "f64 to bool", 1, 1, 1, 1, 1, 1, 0, 1);
    EXPECT(&r[2], "f32 to bf16, ties to even", 1, 1.015625, -1, INFINITY);
    EXPECT(&r[3], "bool to f32", 1, 0);
    EXPECT(&r[4], "bool to i32", 1, 0);
    EXPECT(&r[5], "i32 to f32", 16777216);
    EXPECT(&r[6], "i32 to f64", 16777217);
    EXPECT(&r[7], "i32 to bool", 1);
    EXPECT(&r[8], "i32 to bf16", 16777216);
}

static void logic_and_select(void **state)
{
    (void)state;
    ir_array *r = results_of(
        "graph t() {\n %0: bool[4] = literal {data=[true,true,false,false]}\n %1: bool[4] = literal {data=[true,false,true,false]}\n"
        " %2: bool[4] = and %0, %1\n %3: bool[4] = or %0, %1\n %4: bool[4] = not %0\n %5: bool[4] = eq %0, %1\n %6: bool[4] = lt %0, %1\n"
        " %7: f64[4] = iota {axis=0}\n %8: f64[4] = constant {value=9}\n %9: f64[4] = select %0, %7, %8\n %10: bool[4] = select %0, %1, %0\n"
        " %11: bf16[2,2] = iota {axis=0}\n %12: f32[2,2] = iota {axis=1}\n %13: i32[4] = iota {axis=0}\n %14: i32[4] = select %1, %13, %13\n"
        " return %2, %3, %4, %5, %6, %9, %10, %11, %12, %14\n}\n");
    EXPECT(&r[0], "and", 1, 0, 0, 0);
    EXPECT(&r[1], "or", 1, 1, 1, 0);
    EXPECT(&r[2], "not", 0, 0, 1, 1);
    EXPECT(&r[3], "eq", 1, 0, 0, 1);
    EXPECT(&r[4], "lt", 0, 0, 1, 0);
    EXPECT(&r[5], "select", 0, 1, 9, 9);
    EXPECT(&r[6], "select bool", 1, 0, 0, 0);
    EXPECT(&r[7], "iota bf16", 0, 0, 1, 1);
    EXPECT(&r[8], "iota f32", 0, 1, 0, 1);
    EXPECT(&r[9], "select i32", 0, 1, 2, 3);
}

/* -- reductions and contraction ----------------------------------------------------------------------------------------- */

static void reductions(void **state)
{
    (void)state;
    enum { D0 = 3, D1 = 5, D2 = 7, D3 = 19 };
    dice d = { 4 };
    for (size_t f = 0; f < COUNT_OF(floats); f++)
        for (int mask = 0; mask < 16; mask++) {
            ir_graph *g = keep(ir_graph_new("reductions"));
            int64_t dim[] = { D0, D1, D2, D3 };
            ir_node *x = ir_parameter(g, ir_type_of(floats[f].dtype, 4, dim), NULL), *results[2];
            int axes[4], n = 0;
            for (int a = 0; a < 4; a++)
                if (mask >> a & 1)
                    axes[n++] = a;
            results[0] = ir_reduce(g, OP_reduce_sum, x, n, axes);
            results[1] = ir_reduce(g, OP_reduce_max, x, n, axes);
            ir_set_results(g, 2, results, NULL);
            ir_array *in = arrays_for_params(g);
            fill(in, &d, -1, 1);
            ir_array *out = run_noted(g, in);
            int64_t count = ir_type_count(&out[0].type), stride[4], step = 1;
            for (int a = 3; a >= 0; a--) {
                stride[a] = mask >> a & 1 ? 0 : step;
                step *= mask >> a & 1 ? 1 : dim[a];
            }
            /* f64 against f64: both are chains of up to 1995 sums. */
            double *sum = room(sizeof *sum * (size_t)count), *max = room(sizeof *max * (size_t)count);
            for (int64_t i = 0; i < count; i++)
                max[i] = -INFINITY;
            for (int64_t i = 0; i < D0 * D1 * D2 * D3; i++) {
                int64_t at = i / (D1 * D2 * D3) * stride[0] + i / (D2 * D3) % D1 * stride[1] + i / D3 % D2 * stride[2] + i % D3 * stride[3];
                sum[at] += get(in, i);
                max[at] = fmax(max[at], get(in, i));
            }
            for (int64_t i = 0; i < count; i++) {
                assert_near(get(&out[0], i), sum[i], fmax(floats[f].rounding, 1e-13), "%s sum over mask %d, element %lld\n", floats[f].name, mask, (long long)i);
                assert_near(get(&out[1], i), max[i], 0, "%s max over mask %d, element %lld\n", floats[f].name, mask, (long long)i);
            }
        }
    ir_array *empty = results_of("graph t() {\n %0: f32[2,0] = constant {value=1}\n %1: f32[2] = reduce_sum %0 {axes=[1]}\n"
                                 " %2: f32[0] = reduce_sum %0 {axes=[0]}\n %3: f32[2] = reduce_max %0 {axes=[1]}\n return %1, %2, %3\n}\n");
    EXPECT(&empty[0], "sum of nothing", 0, 0);
    EXPECT(&empty[2], "max of nothing", -INFINITY, -INFINITY);
}

static void argmax(void **state)
{
    (void)state;
    ir_array *r = results_of("graph t() {\n %0: f32[2,3] = literal {data=[1,3,3,-1,-2,-1]}\n %1: i32[2] = argmax %0 {axis=1}\n"
                             " %2: i32[3] = argmax %0 {axis=0}\n %3: f64[3] = literal {data=[0,nan,7]}\n %4: i32[] = argmax %3 {axis=0}\n"
                             " %5: bf16[2] = literal {data=[2,3]}\n %6: i32[] = argmax %5 {axis=0}\n return %1, %2, %4, %6\n}\n");
    EXPECT(&r[0], "the first of equals", 1, 0);
    EXPECT(&r[1], "the other axis", 0, 0, 0);
    EXPECT(&r[2], "a NaN", 1);
    EXPECT(&r[3], "bf16", 1);
}

/* The bits of three plain loops, whatever the tiles. */
static void matmul_is_one_chain_an_element(void **state)
{
    (void)state;
    static const int64_t sizes[][4] = { { 1, 1, 1, 1 }, { 2, 7, 17, 5 }, { 1, 6, 16, 256 }, { 3, 13, 33, 1 }, { 1, 5, 3, 600 }, { 1, 100, 20, 3 },
                                        { 2, 1, 40, 9 }, { 1, 3, 0, 4 }, { 1, 2, 3, 0 } };
    dice d = { 9 };
    for (size_t f = 0; f < COUNT_OF(floats); f++)
        for (size_t s = 0; s < COUNT_OF(sizes); s++)
            for (int to_f32 = 0; to_f32 <= (floats[f].dtype == IR_BF16); to_f32++) {
                int64_t b = sizes[s][0], m = sizes[s][1], n = sizes[s][2], k = sizes[s][3];
                ir_graph *g = keep(ir_graph_new("product"));
                ir_node *lhs = ir_parameter(g, ir_type_of(floats[f].dtype, 3, (int64_t[]){ b, m, k }), NULL);
                ir_node *rhs = ir_parameter(g, ir_type_of(floats[f].dtype, 3, (int64_t[]){ b, k, n }), NULL);
                ir_node *product = ir_matmul(g, lhs, rhs, to_f32 ? IR_F32 : floats[f].dtype);
                ir_set_results(g, 1, &product, NULL);
                ir_array *in = arrays_for_params(g);
                fill(&in[0], &d, -1, 1);
                fill(&in[1], &d, -1, 1);
                ir_array *out = run_noted(g, in);
                ir_array expected = array_of(out->type);
                for (int64_t i = 0; i < b * m * n; i++) {
                    int64_t row = i / n, batch = i / (m * n);
                    float narrow = 0;
                    double wide = 0;
                    for (int64_t p = 0; p < k; p++) {
                        double x = get(&in[0], row * k + p), y = get(&in[1], batch * k * n + p * n + i % n);
                        float narrow_product = (float)x * (float)y;
                        narrow += narrow_product;
                        wide += x * y;
                    }
                    put(&expected, i, floats[f].dtype == IR_F64 ? wide : (double)narrow);
                    assert_near(get(out, i), get(&expected, i), 0, "%s %lldx%lldx%lld, element %lld\n", floats[f].name, (long long)m,
                                (long long)n, (long long)k, (long long)i);
                }
            }
}

/* -- movement ----------------------------------------------------------------------------------------------------------- */

/* Index of the element of x[D0,D1,D2] that an index into a result names, by hand for each op. */
static void movement(void **state)
{
    (void)state;
    static const char *const dtypes[] = { "f32", "f64", "bf16", "i32", "bool" };
    for (size_t t = 0; t < COUNT_OF(dtypes); t++) {
        const char *dt = dtypes[t];
        ir_graph *g = graph_of(text_of(
            "graph t(%%0: %s[3,4,5]) {\n %%1: %s[5,3,4] = transpose %%0 {axes=[2,0,1]}\n %%2: %s[2,3,4,7,5] = broadcast %%0 {axes=[1,2,4]}\n"
            " %%3: %s[2,1,3] = slice %%0 {start=[1,3,2]}\n %%4: %s[4,6,5] = pad %%0 {start=[1,0,0], value=%s}\n %%5: %s[12,5] = reshape %%0\n"
            " %%6: %s[3,8,5] = concatenate %%0, %%0 {axis=1}\n return %%1, %%2, %%3, %%4, %%5, %%6\n}\n",
            dt, dt, dt, dt, dt, strcmp(dt, "bool") ? "1" : "true", dt, dt));
        ir_array *x = arrays_for_params(g);
        for (int i = 0; i < 60; i++)
            put(x, i, i % 7);
        ir_array *y = run_noted(g, x);
        for (int i = 0; i < 3; i++)
            for (int j = 0; j < 4; j++)
                for (int k = 0; k < 5; k++) {
                    double v = get(x, (i * 4 + j) * 5 + k);
                    assert_near(get(&y[0], (k * 3 + i) * 4 + j), v, 0, "%s transpose\n", dt);
                    for (int r = 0; r < 14; r++)
                        assert_near(get(&y[1], (((r / 7 * 3 + i) * 4 + j) * 7 + r % 7) * 5 + k), v, 0, "%s broadcast\n", dt);
                    if (i >= 1 && j == 3 && k >= 2)
                        assert_near(get(&y[2], (i - 1) * 3 + k - 2), v, 0, "%s slice\n", dt);
                    assert_near(get(&y[3], ((i + 1) * 6 + j) * 5 + k), v, 0, "%s pad, inside\n", dt);
                    assert_near(get(&y[3], (i * 6 + 4 + j % 2) * 5 + k), 1, 0, "%s pad, outside\n", dt);
                    assert_near(get(&y[4], (i * 4 + j) * 5 + k), v, 0, "%s reshape\n", dt);
                    assert_near(get(&y[5], (i * 8 + j) * 5 + k), v, 0, "%s concatenate, first\n", dt);
                    assert_near(get(&y[5], (i * 8 + 4 + j) * 5 + k), v, 0, "%s concatenate, second\n", dt);
                }
    }
}

/* Larger than the squares in which a plane is copied, and all orders of the axes. */
static void transposes(void **state)
{
    (void)state;
    static const int perms[][3] = { { 0, 1, 2 }, { 0, 2, 1 }, { 1, 0, 2 }, { 1, 2, 0 }, { 2, 0, 1 }, { 2, 1, 0 } };
    for (size_t p = 0; p < COUNT_OF(perms); p++) {
        int64_t dim[] = { 33, 3, 70 };
        ir_graph *g = keep(ir_graph_new("transpose"));
        ir_node *x = ir_parameter(g, ir_type_of(IR_I32, 3, dim), NULL), *y = ir_transpose(g, x, perms[p]);
        ir_set_results(g, 1, &y, NULL);
        ir_array *in = arrays_for_params(g);
        int64_t count = ir_type_count(&in->type), stride[] = { 210, 70, 1 };
        for (int64_t i = 0; i < count; i++)
            put(in, i, (double)i);
        ir_array *out = run_noted(g, in);
        const int64_t *d = out->type.dim;
        for (int64_t i = 0; i < count; i++) {
            int64_t from = i / (d[1] * d[2]) * stride[perms[p][0]] + i / d[2] % d[1] * stride[perms[p][1]] + i % d[2] * stride[perms[p][2]];
            assert_near(get(out, i), (double)from, 0, "order %d%d%d\n", perms[p][0], perms[p][1], perms[p][2]);
        }
    }
}

static void slices_at_dynamic_starts(void **state)
{
    (void)state;
    ir_array *r = results_of(
        "graph t() {\n %0: i32[3,4] = literal {data=[0,1,2,3,10,11,12,13,20,21,22,23]}\n %1: i32[] = constant {value=1}\n %2: i32[] = constant {value=3}\n"
        " %3: i32[] = constant {value=-7}\n %4: i32[2,2] = dynamic_slice %0, %1, %1\n %5: i32[2,2] = dynamic_slice %0, %3, %2\n"
        " %6: i32[1,2] = literal {data=[7,8]}\n %7: i32[3,4] = update_slice %0, %6, %1, %2\n %8: i32[3,4] = update_slice %7, %6, %2, %3\n"
        " return %4, %5, %7, %8\n}\n");
    EXPECT(&r[0], "within", 11, 12, 21, 22);
    EXPECT(&r[1], "moved into range", 2, 3, 12, 13);
    EXPECT(&r[2], "update, moved into range", 0, 1, 2, 3, 10, 11, 7, 8, 20, 21, 22, 23);
    EXPECT(&r[3], "an update of an update", 0, 1, 2, 3, 10, 11, 7, 8, 7, 8, 22, 23);
}

static void indexing(void **state)
{
    (void)state;
    ir_array *r = results_of(
        "graph t() {\n %0: f32[3,2] = literal {data=[0,1,10,11,20,21]}\n %1: i32[4] = literal {data=[2,-9,9,2]}\n %2: f32[4,2] = gather %0, %1 {axis=0}\n"
        " %3: i32[1,2] = literal {data=[1,0]}\n %4: f32[3,1,2] = gather %0, %3 {axis=1}\n"
        " %5: f32[4,2] = literal {data=[1e8,1,5,6,1,1,-1e8,1]}\n %6: f32[3,2] = scatter_add %0, %1, %5 {axis=0}\n"
        " %7: bf16[2] = constant {value=256}\n %8: i32[2] = constant {value=0}\n %9: bf16[2] = constant {value=1}\n"
        " %10: bf16[2] = scatter_add %7, %8, %9 {axis=0}\n %11: i32[1] = constant {value=2147483647}\n %12: i32[2] = constant {value=1}\n"
        " %13: i32[1] = scatter_add %11, %8, %12 {axis=0}\n %14: f64[2] = constant {value=1}\n %15: f64[2] = scatter_add %14, %8, %14 {axis=0}\n"
        " return %2, %4, %6, %10, %13, %15\n}\n");
    EXPECT(&r[0], "gather, out of range to the nearest", 20, 21, 0, 1, 20, 21, 20, 21);
    EXPECT(&r[1], "gather on the last axis", 1, 0, 11, 10, 21, 20);
    EXPECT(&r[2], "scatter_add in the order of the indices", 5, 7, 10, 11, 16, 24);     /* f32: 20 + 1e8 is 16 + 1e8 */
    EXPECT(&r[3], "scatter_add rounds each sum", 256, 256);
    EXPECT(&r[4], "scatter_add wraps", -2147483647.0);
    EXPECT(&r[5], "scatter_add f64", 3, 1);
}

/* -- random ------------------------------------------------------------------------------------------------------------- */

static void philox(void **state)
{
    (void)state;
    /* The known answers of the authors' library, Random123. */
    static const struct { uint32_t counter[4], key[2], word[4]; } known[] = {
        { { 0, 0, 0, 0 }, { 0, 0 }, { 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8 } },
        { { ~0u, ~0u, ~0u, ~0u }, { ~0u, ~0u }, { 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd } },
        { { 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344 }, { 0xa4093822, 0x299f31d0 }, { 0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1 } },
    };
    for (size_t i = 0; i < COUNT_OF(known); i++) {
        uint32_t word[4];
        ir_philox(known[i].counter, known[i].key, word);
        assert_memory_equal(word, known[i].word, sizeof word);
    }
    ir_array *r = results_of("graph t() {\n %0: i32[2] = literal {data=[5,-6]}\n %1: i32[] = constant {value=7}\n"
                             " %2: i32[3,5] = random_bits %0, %1 {site=8}\n return %2\n}\n");
    for (uint32_t i = 0; i < 15; i++) {
        uint32_t word[4];
        ir_philox((uint32_t[]){ i / 4, 0, 8, 7 }, (uint32_t[]){ 5, (uint32_t)-6 }, word);
        assert_int_equal((uint32_t)((int32_t *)r[0].data)[i], word[i % 4]);
    }
}

/* -- control ------------------------------------------------------------------------------------------------------------ */

static const char *sums(const char *direction)
{
    return text_of("graph t(%%0: i32[3]) {\n %%1: i32[] = constant {value=100}\n %%2: i32[] = constant {value=2}\n"
                   " %%3: (i32[], i32[3]) = scan %%1, %%0, %%2 {count=3, carry=1, xs=1, reverse=%s} graph b(%%0: i32[], %%1: i32[], %%2: i32[]) {\n"
                   "  %%3: i32[] = mul %%1, %%2\n  %%4: i32[] = add %%0, %%3\n  return %%4, %%0\n }\n"
                   " %%4: i32[] = result %%3 {index=0}\n %%5: i32[3] = result %%3 {index=1}\n return %%4, %%5\n}\n", direction);
}

static void scans(void **state)
{
    (void)state;
    int32_t values[] = { 1, 10, 20 };
    ir_array x = { ir_type_of(IR_I32, 1, (int64_t[]){ 3 }), values };
    ir_array *forward = run_noted(graph_of(sums("false")), &x), *backward = run_noted(graph_of(sums("true")), &x);
    EXPECT(&forward[0], "carry", 162);
    EXPECT(&forward[1], "ys", 100, 102, 122);
    EXPECT(&backward[0], "carry, backwards", 162);
    EXPECT(&backward[1], "ys, backwards", 160, 140, 100);

    /* Carries that swap, one that doubles as the other, one left alone; a result that is a parameter of the body; no iteration. */
    ir_array *r = results_of(
        "graph t() {\n %0: i32[2] = literal {data=[1,2]}\n %1: i32[2] = literal {data=[3,4]}\n %2: i32[3,2] = literal {data=[5,6,7,8,9,10]}\n"
        " %3: (i32[2], i32[2], i32[2], i32[3,2]) = scan %0, %1, %1, %2 {count=3, carry=3, xs=1, reverse=false}"
        " graph b(%0: i32[2], %1: i32[2], %2: i32[2], %3: i32[2]) {\n  return %1, %0, %0, %3\n }\n"
        " %4: i32[2] = result %3 {index=0}\n %5: i32[2] = result %3 {index=1}\n %6: i32[2] = result %3 {index=2}\n %7: i32[3,2] = result %3 {index=3}\n"
        " %8: i32[0,2] = constant {value=0}\n"
        " %9: (i32[2], i32[0,2]) = scan %0, %8 {count=0, carry=1, xs=1, reverse=false} graph c(%0: i32[2], %1: i32[2]) {\n"
        "  %2: i32[2] = add %0, %1\n  return %2, %2\n }\n"
        " %10: i32[2] = result %9 {index=0}\n return %4, %5, %6, %7, %10\n}\n");
    EXPECT(&r[0], "swapped thrice", 3, 4);
    EXPECT(&r[1], "swapped thrice", 1, 2);
    EXPECT(&r[2], "what was first before the last swap", 1, 2);
    EXPECT(&r[3], "xs as ys", 5, 6, 7, 8, 9, 10);
    EXPECT(&r[4], "no iteration", 1, 2);
}

static void gradient_ops_are_copies(void **state)
{
    (void)state;
    ir_array *r = results_of("graph t() {\n %0: f32[2] = literal {data=[1,2]}\n %1: f32[2] = stop_gradient %0\n"
                             " %2: f32[2] = custom_gradient %1, %0 graph b(%0: f32[2], %1: f32[2], %2: f32[2]) {\n  return %2\n }\n"
                             " %3: f32[2] = neg %1\n return %1, %2, %3, %0\n}\n");
    for (int i = 0; i < 4; i++)
        EXPECT(&r[i], "a copy", i == 2 ? -1 : 1, i == 2 ? -2 : 2);
}

/* -- programs and memory ------------------------------------------------------------------------------------------------- */

/* Ops that work in place do so in no parameter, and in nothing that is read again; a second run gives the same. */
static void parameters_are_not_written(void **state)
{
    (void)state;
    ir_graph *g = graph_of(
        "graph t(%0: f32[4], %1: i32[]) {\n %2: f32[4] = neg %0\n %3: f32[2] = slice %0 {start=[0]}\n %4: f32[4] = update_slice %0, %3, %1\n"
        " %5: f32[4] = update_slice %2, %2, %1\n %6: f32[4] = add %2, %5\n %7: f32[2,2] = reshape %6\n %8: f32[2,2] = exp %7\n"
        " %9: i32[4] = literal {data=[3,2,1,0]}\n %10: f32[4] = scatter_add %0, %9, %0 {axis=0}\n %11: f32[4] = mul %6, %6\n"
        " %12: f32[4] = abs %0\n %13: f32[4] = scatter_add %12, %9, %12 {axis=0}\n return %4, %5, %8, %10, %6, %11, %0, %13\n}\n");
    float x[] = { 1, 2, 3, 4 };
    int32_t start = 2;
    ir_array params[] = { { ir_type_of(IR_F32, 1, (int64_t[]){ 4 }), x }, { ir_scalar(IR_I32), &start } };
    ir_program *program = ir_prepare(g);
    for (int run = 0; run < 2; run++) {
        ir_array *r = arrays_for_results(g);
        assert_true(ir_run(program, params, r));
        EXPECT(&r[0], "update of a parameter", 1, 2, 1, 2);
        EXPECT(&r[1], "a value updated by itself", -1, -2, -3, -4);
        assert_near(get(&r[2], 0), exp(-2), 1e-7, "exp\n");
        EXPECT(&r[3], "scatter_add to a parameter", 5, 5, 5, 5);
        EXPECT(&r[4], "a result that is read again", -2, -4, -6, -8);
        EXPECT(&r[5], "a product with itself", 4, 16, 36, 64);
        EXPECT(&r[6], "a parameter as a result", 1, 2, 3, 4);
        EXPECT(&r[7], "scatter_add of a value to itself", 5, 5, 5, 5);
        EXPECT(&params[0], "the parameter", 1, 2, 3, 4);
    }
    ir_program_free(program);
}

/* Whichever allocation is refused, the run says so, or does with what it has; it leaves nothing behind, and the next run succeeds. */
static void refused_memory(void **state)
{
    (void)state;
    ir_graph *g = graph_of(
        "graph t(%0: f32[4], %1: f32[3,4]) {\n %2: f32[4] = neg %0\n"
        " %3: (f32[4], f32[4], f32[3,4]) = scan %2, %0, %1 {count=3, carry=2, xs=1, reverse=false} graph b(%0: f32[4], %1: f32[4], %2: f32[4]) {\n"
        "  %3: f32[4] = add %0, %2\n  %4: f32[4] = mul %3, %1\n  return %3, %2, %4\n }\n"
        " %4: f32[4] = result %3 {index=0}\n %5: f32[3,4] = result %3 {index=2}\n %6: f32[] = reduce_sum %4 {axes=[0]}\n return %6, %5\n}\n");
    ir_array *params = arrays_for_params(g), *r = arrays_for_results(g);
    size_t blocks = base_alloc_count();
    int refused = 0;
    for (int n = 0; n < 30; n++) {
        ir_program *program = ir_prepare(g);
        base_alloc_refuse(n);
        bool done = ir_run(program, params, r);
        base_alloc_refuse(-1);
        if (!done)
            assert_non_null(strstr(base_error(), "memory"));
        refused += !done;
        base_error_clear();
        assert_true(ir_run(program, params, r));
        ir_program_free(program);
        assert_int_equal(base_alloc_count(), blocks);
    }
    assert_true(refused >= 5);
}

static void every_op_was_run(void **state)
{
    (void)state;
    for (int op = 0; op < IR_OPS; op++)
        if (ir_op_table[op].class != IR_COMPOSITE && !was_run[op])
            fail_msg("%s: no test of this file runs it", OP_NAME(op));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        GRAPH_TEST(float_functions), GRAPH_TEST(inverse_error_function), GRAPH_TEST(nan_and_zero), GRAPH_TEST(integers_wrap),
        GRAPH_TEST(casts), GRAPH_TEST(logic_and_select), GRAPH_TEST(reductions), GRAPH_TEST(argmax),
        GRAPH_TEST(matmul_is_one_chain_an_element), GRAPH_TEST(movement), GRAPH_TEST(transposes), GRAPH_TEST(slices_at_dynamic_starts),
        GRAPH_TEST(indexing), GRAPH_TEST(philox), GRAPH_TEST(scans), GRAPH_TEST(gradient_ops_are_copies),
        GRAPH_TEST(parameters_are_not_written), GRAPH_TEST(refused_memory),
        cmocka_unit_test(every_op_was_run),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
