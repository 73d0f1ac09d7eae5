/* Recording: messages of errors word for word, signatures and named dims, scopes, trees, random sites. Calls: test_calls.c. */
#include "tests/tracer_support.h"

/* -- errors while tracing ----------------------------------------------------------------------------------------------- */

static int line;                                   /* of the op that is wrong */
#define AT line = __LINE__,

/* x: f32[B=2,T=3,C=4], w: f32[6,C=4], params: a tree with h.0.weight and scale. */
typedef struct { rax_tensor x, w; rax_tree params; } given;

static rax_tensor wrong_matmul(given g) { return AT rax_matmul(g.x, g.w); }
static rax_tensor wrong_lhs(given g) { return AT rax_matmul(rax_slice(g.x, 2, 0, 3), rax_reshape(g.w, RAX_SHAPE(4, 6))); }
static rax_tensor vector_matmul(given g) { return AT rax_matmul(g.x, rax_reshape(g.w, RAX_SHAPE(-1))); }
static rax_tensor wrong_add(given g) { return AT rax_add(g.x, g.w); }
static rax_tensor wrong_dtype(given g) { return AT rax_mul(g.x, rax_iota(RAX_I32, RAX_SHAPE(4), 0)); }
static rax_tensor wrong_select(given g) { return AT rax_select(g.x, g.x, g.x); }
static rax_tensor wrong_axis(given g) { return AT rax_sum(g.x, RAX_AXES(3)); }
static rax_tensor double_axis(given g) { return AT rax_sum(g.x, RAX_AXES(1, -2)); }
static rax_tensor wrong_reshape(given g) { return AT rax_reshape(g.x, RAX_SHAPE(5, -1)); }
static rax_tensor huge_reshape(given g) { return AT rax_reshape(g.x, RAX_SHAPE(8, INT64_MAX, -1)); }
static rax_tensor wrong_slice(given g) { return AT rax_slice(g.x, -1, 2, 3); }
static rax_tensor no_leaf(given g) { return AT rax_get(g.params, "h.%d.wieght", 0); }
static rax_tensor vector_loss(given g) { AT rax_grad(g.x, g.params); return g.x; }
static rax_tensor array_operand(given g)
{
    rax_tensor array = F32(1);
    rax_tensor result = (AT rax_add(g.x, array));
    rax_tensor_free(array);
    return result;
}
static rax_tensor no_tensor(given g) { return AT rax_add(g.x, RAX_NO_TENSOR); }
static rax_tensor wrong_gather(given g) { return AT rax_gather(g.x, g.w, 0); }
static rax_tensor wrong_dropout(given g) { return AT rax_dropout((rax_random){ 0 }, g.x, 1.0); }
static rax_tensor wrong_batch(given g)
{
    return AT rax_matmul(g.x, rax_constant(RAX_F32, RAX_SHAPE(3, 4, 5), 0));
}
static rax_tensor wrong_norm(given g) { return AT rax_layer_norm(g.x, rax_sum(g.w, RAX_AXES(1)), RAX_NO_TENSOR, 1e-5); }
static void widen(void *context, const rax_tensor *carry, const rax_tensor *x, rax_tensor *next, rax_tensor *y)
{
    (void)context; (void)x; (void)y;
    next[0] = rax_concatenate(2, ((rax_tensor[]){ carry[0], carry[0] }), 0);
}
static rax_tensor wrong_carry(given g)
{
    rax_tensor carry = g.w;
    AT rax_scan(widen, NULL, 2, 1, &carry, 0, NULL, 0, NULL);
    return rax_add(g.x, rax_sum(carry, RAX_ALL_AXES));
}
static rax_tensor leaked;
static void leak(void *context, const rax_tensor *carry, const rax_tensor *x, rax_tensor *next, rax_tensor *y)
{
    (void)context; (void)x; (void)y;
    next[0] = leaked = rax_scale(carry[0], 2);
}
static rax_tensor leaked_value(given g)
{
    rax_tensor carry = g.w;
    rax_scan(leak, NULL, 2, 1, &carry, 0, NULL, 0, NULL);
    return AT rax_add(g.x, rax_sum(leaked, RAX_ALL_AXES));
}
static rax_tensor second_error(given g)
{
    rax_tensor bad = (AT rax_add(g.x, g.w));
    int first = line;
    rax_tensor worse = rax_matmul(bad, rax_add(g.w, RAX_NO_TENSOR));
    line = first;
    return rax_dim(worse, 2) == 1 ? worse : g.x;     /* a poisoned tensor answers, and nothing ends */
}

static const struct { const char *name; rax_tensor (*body)(given g); const char *message; } mistakes[] = {
    { "matmul", wrong_matmul, "matmul: lhs f32[B=2,T=3,C=4] has C=4 on axis 2, rhs f32[6,C=4] has 6 on axis 0\n"
                              "rhs has C=4 on axis 1: rax_transpose(rhs, 1, 0) would fit" },
    { "matmul, lhs", wrong_lhs, "matmul: lhs f32[B=2,T=3,3] has 3 on axis 2, rhs f32[4,6] has 4 on axis 0" },
    { "matmul by a vector", vector_matmul, "matmul: rhs f32[24] has rank 1, expected at least 2" },
    { "matmul, leading axes", wrong_batch, "matmul: lhs f32[B=2,T=3,C=4] has B=2 on axis 0, rhs f32[3,4,5] has 3 on axis 0" },
    { "add", wrong_add, "add: lhs f32[B=2,T=3,C=4] has T=3 on axis 1, rhs f32[6,C=4] has 6 on axis 0" },
    { "dtypes", wrong_dtype, "mul: lhs f32[B=2,T=3,C=4] is f32, rhs i32[4] is i32\nrax_cast(rhs, RAX_F32) would fit" },
    { "select", wrong_select, "select: condition f32[B=2,T=3,C=4] is f32, expected bool" },
    { "axis", wrong_axis, "sum: x f32[B=2,T=3,C=4] has rank 3, there is no axis 3" },
    { "axis twice", double_axis, "sum: axis 1 comes twice" },
    { "reshape", wrong_reshape, "reshape: x f32[B=2,T=3,C=4] has 24 elements, result f32[5,4] has 20" },
    { "reshape beyond 64 bits", huge_reshape, "reshape: f32[8,9223372036854775807,0] has over 2^40 elements" },
    { "slice", wrong_slice, "slice: x f32[B=2,T=3,C=4] has C=4 on axis 2, there is no part of 3 from 2" },
    { "get", no_leaf, "rax_get: there is no leaf h.0.wieght in a tree of 2\nh.0.weight is there" },
    { "loss", vector_loss, "grad: loss f32[B=2,T=3,C=4] is not a float scalar\nrax_mean(loss, RAX_ALL_AXES) or rax_sum would fit" },
    { "array", array_operand, "add: rhs is an array of the caller's\nPass it as an argument, or copy it in by rax_literal" },
    { "no tensor", no_tensor, "add: rhs is no tensor (RAX_NO_TENSOR)" },
    { "gather", wrong_gather, "gather: indices f32[6,C=4] is f32, expected i32" },
    { "dropout", wrong_dropout, "dropout: p is to be at least 0 and below 1, got 1" },
    { "layer norm", wrong_norm, "layer_norm: x f32[B=2,T=3,C=4] has C=4 on axis 2, weight f32[6] has 6 on axis 0" },
    { "carry", wrong_carry, "scan: next[0], set by the body, is f32[12,C=4], expected f32[6,C=4] as carry 0 has at first" },
    { "leaked value", leaked_value, "sum: x is a value of a body that is over\nA scan gives its values out as carries and ys" },
    { "the first is kept", second_error, "add: lhs f32[B=2,T=3,C=4] has T=3 on axis 1, rhs f32[6,C=4] has 6 on axis 0" },
};

static int mistake;
static void mistaken_step(rax_args *in, rax_results *out)
{
    rax_tensor y = mistakes[mistake].body((given){ rax_arg_tensor(in, 0), rax_arg_tensor(in, 1), rax_arg_tree(in, 2) });
    rax_return_tensor(out, 0, y);
}

/* "FILE:LINE: " before the first line, and as many blanks before the others. */
static char *placed(const char *file, int at, const char *message)
{
    base_text text = {0};
    base_text_add(&text, "%s:%d: ", file, at);
    int width = (int)text.len;
    for (const char *letter = message; *letter; letter++) {
        base_text_bytes(&text, letter, 1);
        if (*letter == '\n')
            base_text_add(&text, "%*s", width, "");
    }
    return base_text_take(&text);
}

static void test_mistakes(void **state)
{
    (void)state;
    rax_tensor x = rax_tensor_new(RAX_F32, RAX_SHAPE(2, 3, 4)), w = rax_tensor_new(RAX_F32, RAX_SHAPE(6, 4));
    rax_tree params = rax_tree_new();
    assert_true(rax_tree_add(params, F32(1, 2), "h.%d.weight", 0) && rax_tree_add(params, F32(3), "scale"));
    for (mistake = 0; mistake < (int)COUNT(mistakes); mistake++) {
        rax_fn *step = rax_function(mistaken_step, "step", "x: f32[B,T,C], w: f32[_,C], params: tree");
        rax_tensor y = RAX_NO_TENSOR;
        rax_value args[] = { rax_pass_tensor(x), rax_pass_tensor(w), rax_pass_tree(params) };
        rax_into results[] = { rax_into_tensor(&y) };
        rax_error_clear();
        if (rax_call(step, args, results))
            fail_msg("%s: expected an error", mistakes[mistake].name);
        char *expected = placed(__FILE__, line, mistakes[mistake].message);
        assert_string_equal(rax_error(), expected);
        assert_int_equal(rax_error_kind_of(), RAX_MISTAKE);
        assert_false(rax_is_tensor(y));
        base_free(expected);
        rax_function_free(step);
    }
    rax_tensor_free(x);
    rax_tensor_free(w);
    rax_tree_free(params);
}

static void test_ops_outside_a_step(void **state)
{
    (void)state;
    rax_tensor x = F32(1, 2), y;
    int at = __LINE__ + 1;
    y = rax_add(x, x);
    char *expected = placed(__FILE__, at, "add: ops are recorded inside a step that rax_call runs, and this is outside of any");
    assert_false(rax_is_tensor(y));
    assert_string_equal(rax_error(), expected);
    base_free(expected);
    rax_tensor_free(x);
}

static void forgetful_step(rax_args *in, rax_results *out) { rax_return_tensor(out, 0, rax_arg_tensor(in, 0)); }

static void test_a_result_that_is_not_returned(void **state)
{
    (void)state;
    rax_fn *step = rax_function(forgetful_step, "forgetful", "x: f32[N]");
    rax_tensor x = F32(1, 2), a = RAX_NO_TENSOR, b = RAX_NO_TENSOR;
    rax_value args[] = { rax_pass_tensor(x) };
    rax_into results[] = { rax_into_tensor(&a), rax_into_tensor(&b) };
    assert_false(rax_call(step, args, results));
    assert_string_equal(rax_error(), "forgetful: return: result 1 was not returned");
    rax_function_free(step);
    rax_tensor_free(x);
}

/* -- signatures --------------------------------------------------------------------------------------------------------- */

static void test_signatures_that_do_not_parse(void **state)
{
    (void)state;
    static const struct { const char *text, *message; } rows[] = {
        { "x", "f: signature: expected ':' at \"the end\", column 2" },
        { "x: f16[2]", "f: signature: expected tree, record, f32, f64, bf16, i32 or bool at \"f16[2]\", column 4" },
        { "x: f32[2", "f: signature: expected ',' or ']' at \"the end\", column 9" },
        { "x: f32[,]", "f: signature: expected a dim: a number, a name or _ at \",]\", column 8" },
        { "x: bf16", "f: signature: expected '[': a scalar is i32, f32, f64 or bool at \"the end\", column 8" },
        { "x: f32[2] y: i32", "f: signature: expected ',' or the end at \"y: i32\", column 11" },
        { "p: tree{w}", "f: signature: expected ':' at \"}\", column 10" },
        { "x: i32, x: i32", "f: signature: two arguments are named x" },
        { "x: f32[1,2,3,4,5,6,7,8,9]", "f: signature: expected at most 8 dims at \"9]\", column 24" },
        { "x: f32[99999999999999999999]", "f: signature: expected a dim of at most 2^40 at \"99999999]\", column 20" },
    };
    for (size_t i = 0; i < COUNT(rows); i++) {
        assert_null(rax_function(forgetful_step, "f", rows[i].text));
        assert_string_equal(rax_error(), rows[i].message);
    }
    rax_fn *none = rax_function(forgetful_step, "f", "");
    assert_non_null(none);
    rax_function_free(none);
}

static void sum_step(rax_args *in, rax_results *out)
{
    rax_tree params = rax_arg_tree(in, 0);
    rax_tensor x = rax_arg_tensor(in, 1), y = rax_arg_tensor(in, 2);
    rax_return_tensor(out, 0,
                      rax_add(rax_add(rax_sum(x, RAX_ALL_AXES), rax_sum(y, RAX_ALL_AXES)),
                              rax_sum(rax_leaf(params, 0), RAX_ALL_AXES)));
}

static void expect_refused(rax_fn *step, rax_tree params, rax_tensor x, rax_tensor y, const char *message)
{
    rax_tensor sum = RAX_NO_TENSOR;
    rax_value args[] = { rax_pass_tree(params), rax_pass_tensor(x), rax_pass_tensor(y) };
    rax_into results[] = { rax_into_tensor(&sum) };
    char *expected = placed(__FILE__, __LINE__ + 1, message);
    bool called = rax_call(step, args, results);
    assert_false(called);
    assert_string_equal(rax_error(), expected);
    base_free(expected);
}

static void test_named_dims(void **state)
{
    (void)state;
    rax_tree params = rax_tree_new();
    assert_true(rax_tree_add(params, rax_tensor_new(RAX_F32, RAX_SHAPE(5, 3)), "wte"));
    rax_tensor x = rax_tensor_new(RAX_F32, RAX_SHAPE(2, 3)), y = rax_tensor_new(RAX_F32, RAX_SHAPE(2, 4)),
               z = rax_tensor_new(RAX_F32, RAX_SHAPE(9, 2, 3)), i = rax_tensor_new(RAX_I32, RAX_SHAPE(2, 3));
    rax_fn *step = rax_function(sum_step, "sum", "params: tree{wte: f32[V,C]}, x: f32[B,C], y: f32[...,B,_]");
    rax_tensor sum = RAX_NO_TENSOR;
    rax_value args[] = { rax_pass_tree(params), rax_pass_tensor(x), rax_pass_tensor(y) };
    rax_into results[] = { rax_into_tensor(&sum) };
    CALL(step, args, results);
    args[2] = rax_pass_tensor(z);
    CALL(step, args, results);
    expect_refused(step, params, y, y,
                   "sum: arg 1 x: f32[2,4] has C=4 on axis 1, where arg 0 params.wte: f32[5,3] has C=3 on axis 1");
    expect_refused(step, params, i, y, "sum: arg 1 x: expected f32[B,C], got i32[2,3]");
    expect_refused(step, params, z, y, "sum: arg 1 x: expected f32[B,C], got f32[9,2,3]: rank 3, not 2");
    rax_function_free(step);

    step = rax_function(sum_step, "sum", "params: tree{wpe: f32[V,C]}, x: f32[2,7], y: f32[_,_]");
    expect_refused(step, params, x, y, "sum: arg 0 params: there is no leaf wpe in a tree of 1");
    rax_function_free(step);
    step = rax_function(sum_step, "sum", "params: tree, x: f32[2,7], y: f32[_,_]");
    expect_refused(step, params, x, y, "sum: arg 1 x: expected f32[2,7], got f32[2,3]: axis 1 has 3, not 7");
    rax_function_free(step);
    rax_tree_free(params);
    rax_tensor_free(x);
    rax_tensor_free(y);
    rax_tensor_free(z);
    rax_tensor_free(i);
    rax_tensor_free(sum);
}

/* -- trees ---------------------------------------------------------------------------------------------------------------- */

static void test_trees(void **state)
{
    (void)state;
    rax_tree tree = rax_tree_new();
    rax_tensor b = F32(2);
    for (int i = 0; i < 20; i++)
        assert_true(rax_tree_add(tree, F32((float)i), "h.%d.w", i));
    assert_false(rax_tree_add(tree, b, "h.%d.w", 3));
    assert_string_equal(rax_error(), "rax_tree_add: h.3.w is in the tree already");
    rax_tensor_free(b);                            /* the tree did not take it */
    assert_int_equal(rax_tree_size(tree), 20);
    assert_string_equal(rax_leaf_name(tree, 7), "h.7.w");
    assert_float_equal(rax_item(rax_get(tree, "h.%d.w", 13), 0), 13, 0);
    assert_true(rax_has(tree, "h.0.w") && !rax_has(tree, "h.0.b"));
    assert_false(rax_is_tensor(rax_leaf(tree, 20)));
    rax_tree zeros = rax_tree_like(tree);
    assert_float_equal(rax_item(rax_get(zeros, "h.13.w"), 0), 0, 0);
    rax_tensor leaf = rax_leaf(zeros, 0);
    rax_tensor_free(leaf);
    assert_string_equal(rax_error(), "rax_tensor_free: the tensor belongs to a tree, which frees it");
    rax_tree_free(zeros);
    assert_null(rax_data(leaf));
    rax_tree_free(tree);
}

/* -- random sites ------------------------------------------------------------------------------------------------------------ */

static void random_step(rax_args *in, rax_results *out)
{
    rax_random random = { rax_seed(((uint64_t)7 << 32) + 5), rax_arg_tensor(in, 0) };
    rax_return_tensor(out, 0, rax_uniform(random, RAX_SHAPE(3)));
    rax_return_tensor(out, 1, rax_uniform(random, RAX_SHAPE(3)));
}

static void test_random_sites_differ_and_counters_matter(void **state)
{
    (void)state;
    rax_tensor a = RAX_NO_TENSOR, b = RAX_NO_TENSOR;
    rax_fn *step = rax_function(random_step, "random", "counter: i32");
    rax_value args[] = { rax_pass_number(0) };
    rax_into results[] = { rax_into_tensor(&a), rax_into_tensor(&b) };
    CALL(step, args, results);
    double first = rax_item(a, 0);
    assert_true(first != rax_item(b, 0) && first >= 0 && first < 1);
    args[0] = rax_pass_number(1);
    CALL(step, args, results);
    assert_true(first != rax_item(a, 0));
    args[0] = rax_pass_number(0);
    CALL(step, args, results);
    assert_true(first == rax_item(a, 0));
    assert_int_equal(rax_stats(step).compilations, 1);
    rax_function_free(step);
    rax_tensor_free(a);
    rax_tensor_free(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_mistakes),
        TEST(test_ops_outside_a_step),
        TEST(test_a_result_that_is_not_returned),
        TEST(test_signatures_that_do_not_parse),
        TEST(test_named_dims),
        TEST(test_trees),
        TEST(test_random_sites_differ_and_counters_matter),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
