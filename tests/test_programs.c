/* Programs over rax.h that the compiler's authors did not have in mind, small. Each runs by the interpreter and by the
 * compiler, which must agree; gradients are held against finite differences in f64. */
#include "tests/random_tensors.h"

/* -- the programs: a loss of parameters and data -------------------------------------------------------------------------- */

static rax_tensor W(rax_tree params, const char *name) { return rax_get(params, "%s", name); }
static rax_tensor linear(rax_tensor x, rax_tree params, const char *name)
{
    return rax_add(rax_matmul(x, W(params, name)), rax_get(params, "%s_bias", name));
}

/* A character RNN: B=3, T=5, hidden 4, 7 characters. The state goes through a scan. */
static void rnn_params(rax_tree params)
{
    rax_tree_add(params, random_tensor(RAX_SHAPE(7, 4), 0.7), "embedding");
    rax_tree_add(params, random_tensor(RAX_SHAPE(4, 4), 0.7), "recurrent");
    rax_tree_add(params, random_tensor(RAX_SHAPE(4), 0.7), "recurrent_bias");
    rax_tree_add(params, random_tensor(RAX_SHAPE(4, 7), 0.7), "output");
    rax_tree_add(params, random_tensor(RAX_SHAPE(7), 0.7), "output_bias");
}
static void rnn_cell(void *context, const rax_tensor *carry, const rax_tensor *x, rax_tensor *next, rax_tensor *y)
{
    rax_tree params = *(rax_tree *)context;
    next[0] = y[0] = rax_tanh(rax_add(x[0], linear(carry[0], params, "recurrent")));
}
static rax_tensor rnn_loss(rax_tree params, rax_tensor ids)
{
    rax_tensor x = rax_swap(rax_gather(W(params, "embedding"), rax_slice(ids, 1, 0, 5), 0), 0, 1);        /* [T,B,H] */
    rax_tensor h = rax_constant(D, RAX_SHAPE(3, 4), 0), states;
    rax_scan(rnn_cell, &params, 5, 1, &h, 1, &x, 1, &states);
    rax_tensor logits = rax_swap(linear(states, params, "output"), 0, 1);
    return rax_mean(rax_cross_entropy(logits, rax_slice(ids, 1, 1, 5)), RAX_ALL_AXES);
}

/* A Llama block: RMS norms, rotary embedding, two query heads a key head, a gated SiLU. B=2, T=4, C=8, H=4, head 2. */
static void llama_params(rax_tree params)
{
    static const struct {
        const char *name;
        int from, to;
    } matrices[] = { { "q", 8, 8 },     { "k", 8, 4 },   { "v", 8, 4 },     { "o", 8, 8 },
                     { "gate", 8, 12 }, { "up", 8, 12 }, { "down", 12, 8 }, { "head", 8, 5 } };
    rax_tree_add(params, random_tensor(RAX_SHAPE(5, 8), 1), "wte");
    for (size_t i = 0; i < COUNT(matrices); i++)
        rax_tree_add(params, random_tensor(RAX_SHAPE(matrices[i].from, matrices[i].to), 0.6), "%s", matrices[i].name);
    for (int i = 0; i < 3; i++)
        rax_tree_add(params, random_tensor(RAX_SHAPE(8), 1), "norm.%d", i);
}
static rax_tensor rotate(rax_tensor x)              /* [B,H,T,D]: pairs (i, i + D/2) turn by position * theta^(-2i/D) */
{
    int64_t T = rax_dim(x, 2), half = rax_dim(x, 3) / 2;
    rax_tensor position = rax_iota(D, RAX_SHAPE(T, half), 0), i = rax_iota(D, RAX_SHAPE(T, half), 1);
    rax_tensor angle = rax_mul(position, rax_exp(rax_scale(i, -log(10000.0) / (double)half)));
    rax_tensor a = rax_slice(x, 3, 0, half), b = rax_slice(x, 3, half, half), c = rax_cos(angle), s = rax_sin(angle);
    rax_tensor turned[] = { rax_sub(rax_mul(a, c), rax_mul(b, s)), rax_add(rax_mul(a, s), rax_mul(b, c)) };
    return rax_concatenate(2, turned, -1);
}
static rax_tensor heads(rax_tensor x, int64_t n)    /* [B,T,n*2] -> [B,n,T,2] */
{
    return rax_transpose(rax_reshape(x, RAX_SHAPE(rax_dim(x, 0), rax_dim(x, 1), n, -1)), 0, 2, 1, 3);
}
static rax_tensor shared_heads(rax_tensor x)        /* each key head serves two query heads */
{
    rax_tensor h = rax_reshape(heads(x, 2), RAX_SHAPE(rax_dim(x, 0), 2, 1, rax_dim(x, 1), 2));
    return rax_reshape(rax_broadcast(h, RAX_SHAPE(rax_dim(x, 0), 2, 2, rax_dim(x, 1), 2)),
                       RAX_SHAPE(rax_dim(x, 0), 4, rax_dim(x, 1), 2));
}
static rax_tensor llama_loss(rax_tree params, rax_tensor ids)
{
    rax_tensor x = rax_gather(W(params, "wte"), rax_slice(ids, 1, 0, 4), 0);
    rax_tensor h = rax_rms_norm(x, rax_get(params, "norm.%d", 0), 1e-5);
    rax_tensor q = rotate(heads(rax_matmul(h, W(params, "q")), 4)), k = rotate(shared_heads(rax_matmul(h, W(params, "k"))));
    rax_tensor v = shared_heads(rax_matmul(h, W(params, "v")));
    rax_tensor a = rax_attention(q, k, v, ((rax_attention_options){ .causal = true }));
    x = rax_add(x, rax_matmul(rax_reshape(rax_transpose(a, 0, 2, 1, 3), RAX_SHAPE(rax_dim(x, 0), 4, 8)), W(params, "o")));
    h = rax_rms_norm(x, rax_get(params, "norm.1"), 1e-5);
    h = rax_mul(rax_silu(rax_matmul(h, W(params, "gate"))), rax_matmul(h, W(params, "up")));
    x = rax_add(x, rax_matmul(h, W(params, "down")));
    rax_tensor logits = rax_matmul(rax_rms_norm(x, rax_get(params, "norm.2"), 1e-5), W(params, "head"));
    return rax_mean(rax_cross_entropy(logits, rax_slice(ids, 1, 1, 4)), RAX_ALL_AXES);
}

/* A gradient penalty: the loss has a gradient in it, so its gradient is a second derivative. */
static void penalty_params(rax_tree params)
{
    rax_tree_add(params, random_tensor(RAX_SHAPE(3, 5), 1), "hidden");
    rax_tree_add(params, random_tensor(RAX_SHAPE(5), 1), "hidden_bias");
    rax_tree_add(params, random_tensor(RAX_SHAPE(5, 1), 1), "out");
}
static rax_tensor penalty_loss(rax_tree params, rax_tensor ids)
{
    rax_tensor x = rax_scale(rax_cast(rax_reshape(rax_slice(ids, 1, 0, 3), RAX_SHAPE(3, 3)), D), 0.3), dx;
    rax_tensor y = rax_sum(rax_matmul(rax_gelu(linear(x, params, "hidden")), W(params, "out")), RAX_ALL_AXES);
    rax_grad_of(y, 1, &x, &dx);
    rax_tensor norm = rax_sqrt(rax_shift(rax_sum(rax_mul(dx, dx), RAX_AXES(1)), 1e-3));
    rax_tensor off = rax_shift(norm, -1);
    return rax_add(y, rax_mean(rax_mul(off, off), RAX_ALL_AXES));
}

/* Two losses on shared weights, one through stop_gradient, and a max over time. */
static void shared_params(rax_tree params)
{
    rax_tree_add(params, random_tensor(RAX_SHAPE(7, 4), 1), "table");
    rax_tree_add(params, random_tensor(RAX_SHAPE(4, 3), 1), "classes");
    rax_tree_add(params, random_tensor(RAX_SHAPE(3), 1), "classes_bias");
}
static rax_tensor shared_loss(rax_tree params, rax_tensor ids)
{
    rax_tensor table = W(params, "table"), e = rax_gather(table, ids, 0);
    rax_tensor pooled = rax_reduce_max(rax_silu(e), RAX_AXES(1));
    rax_tensor target = rax_rem(rax_slice(ids, 1, 0, 1), rax_constant(RAX_I32, RAX_SCALAR, 3));
    rax_tensor first = rax_mean(rax_cross_entropy(linear(pooled, params, "classes"),
                                                  rax_reshape(target, RAX_SHAPE(3))),
                                RAX_ALL_AXES);
    rax_tensor back = rax_matmul(rax_mean(e, RAX_AXES(1)), rax_swap(table, 0, 1));
    rax_tensor second = rax_mean(rax_sum(rax_softmax(back, -1), RAX_AXES(0)), RAX_ALL_AXES);
    rax_tensor pull = rax_sub(e, rax_stop_gradient(rax_mean_keep(e, RAX_AXES(1))));
    return rax_add(first, rax_add(second, rax_scale(rax_mean(rax_mul(pull, pull), RAX_ALL_AXES), 0.1)));
}

/* A convolution by slices: 3 taps over 6 places, 2 channels to 3, stride 1, zero padding, max pooling by 2. */
static void conv_params(rax_tree params)
{
    rax_tree_add(params, random_tensor(RAX_SHAPE(7, 2), 1), "pixels");
    rax_tree_add(params, random_tensor(RAX_SHAPE(3, 2, 3), 1), "taps");
    rax_tree_add(params, random_tensor(RAX_SHAPE(3), 1), "bias");
}
static rax_tensor conv_loss(rax_tree params, rax_tensor ids)
{
    rax_tensor x = rax_pad(rax_gather(W(params, "pixels"), ids, 0), 1, 1, 1, 0), sum = W(params, "bias");
    for (int tap = 0; tap < 3; tap++)
        sum = rax_add(sum, rax_matmul(rax_slice(x, 1, tap, 6),
                                      rax_reshape(rax_slice(W(params, "taps"), 0, tap, 1), RAX_SHAPE(2, 3))));
    rax_tensor pooled = rax_reduce_max(rax_reshape(rax_tanh(sum), RAX_SHAPE(3, 3, 2, 3)), RAX_AXES(2));
    return rax_mean(rax_pow(rax_abs(rax_shift(pooled, 0.1)), rax_constant(D, RAX_SCALAR, 1.7)), RAX_ALL_AXES);
}

/* Logistic regression, its loss log(1 + e^z) - y z in a form that cannot overflow, with a gradient of its own, which
 * looks at a value from outside. */
static void logistic_params(rax_tree params)
{
    rax_tree_add(params, random_tensor(RAX_SHAPE(6, 1), 1), "w");
    rax_tree_add(params, random_tensor(RAX_SHAPE(1), 1), "w_bias");
}
static void logistic_vjp(void *context, const rax_tensor *xs, rax_tensor y, rax_tensor dy, rax_tensor *dxs)
{
    (void)y;
    dxs[0] = rax_mul(dy, rax_sub(rax_sigmoid(xs[0]), *(rax_tensor *)context));
}
static rax_tensor logistic_loss(rax_tree params, rax_tensor ids)
{
    rax_tensor x = rax_scale(rax_cast(ids, D), 0.3);
    rax_tensor label = rax_cast(rax_gt(rax_sum_keep(ids, RAX_AXES(1)), rax_constant(RAX_I32, RAX_SCALAR, 17)), D);
    rax_tensor z = linear(x, params, "w");
    rax_tensor value = rax_sub(rax_add(rax_max(z, rax_scale(z, 0)),
                                       rax_log(rax_shift(rax_exp(rax_neg(rax_abs(z))), 1))),
                               rax_mul(label, z));
    return rax_mean(rax_custom_gradient(value, 1, &z, logistic_vjp, &label), RAX_ALL_AXES);
}

/* A loop in a loop, the inner one over what the outer one made, the parameters used in both. */
static void nested_params(rax_tree params)
{
    rax_tree_add(params, random_tensor(RAX_SHAPE(4), 0.5), "a");
    rax_tree_add(params, random_tensor(RAX_SHAPE(4), 0.5), "b");
}
typedef struct { rax_tree params; rax_tensor outer; } nested;
static void inner_body(void *context, const rax_tensor *carry, const rax_tensor *x, rax_tensor *next, rax_tensor *y)
{
    nested *n = context;
    (void)x; (void)y;
    next[0] = rax_add(rax_mul(rax_sin(carry[0]), W(n->params, "a")), n->outer);
}
static void outer_body(void *context, const rax_tensor *carry, const rax_tensor *x, rax_tensor *next, rax_tensor *y)
{
    nested n = { *(rax_tree *)context, rax_mul(carry[0], rax_add(W(*(rax_tree *)context, "b"), x[0])) };
    rax_tensor inner = carry[0];
    rax_scan(inner_body, &n, 3, 1, &inner, 0, NULL, 0, NULL);
    next[0] = inner;
    y[0] = rax_sum(inner, RAX_ALL_AXES);
}
static rax_tensor nested_loss(rax_tree params, rax_tensor ids)
{
    rax_tensor x = rax_scale(rax_cast(rax_swap(ids, 0, 1), D), 0.1), carry = rax_constant(D, RAX_SHAPE(4), 0.5), ys;
    x = rax_broadcast(rax_sum_keep(x, RAX_AXES(1)), RAX_SHAPE(6, 4));
    rax_scan(outer_body, &params, 6, 1, &carry, 1, &x, 1, &ys);
    return rax_add(rax_mean(rax_mul(ys, ys), RAX_ALL_AXES), rax_sum(carry, RAX_ALL_AXES));
}

/* Writing at places known only when the step runs, and reading them back. */
static void cache_params(rax_tree params)
{
    rax_tree_add(params, random_tensor(RAX_SHAPE(3, 6), 1), "base");
    rax_tree_add(params, random_tensor(RAX_SHAPE(3, 2), 1), "update");
}
static rax_tensor cache_loss(rax_tree params, rax_tensor ids)
{
    rax_tensor at = rax_reshape(rax_slice(rax_slice(ids, 0, 0, 1), 1, 0, 1), RAX_SCALAR);
    rax_tensor written = rax_update_slice(W(params, "base"), rax_exp(W(params, "update")), 1, at);
    rax_tensor read = rax_dynamic_slice(written, 1, rax_sub(at, rax_constant(RAX_I32, RAX_SCALAR, 1)), 3);
    rax_tensor spread = rax_scatter_add(rax_mul(W(params, "base"), W(params, "base")),
                                        rax_reshape(rax_slice(ids, 1, 0, 1), RAX_SHAPE(3)),
                                        rax_slice(written, 1, 0, 3), 1);
    return rax_add(rax_mean(rax_mul(read, read), RAX_ALL_AXES), rax_mean(rax_tanh(spread), RAX_ALL_AXES));
}

static const struct program {
    const char *name;
    void (*params)(rax_tree);
    rax_tensor (*loss)(rax_tree, rax_tensor ids);
} programs[] = {
    { "character RNN", rnn_params, rnn_loss },
    { "Llama block", llama_params, llama_loss },
    { "gradient penalty", penalty_params, penalty_loss },
    { "two losses on shared weights", shared_params, shared_loss },
    { "convolution by slices", conv_params, conv_loss },
    { "logistic regression with a gradient of its own", logistic_params, logistic_loss },
    { "a scan in a scan", nested_params, nested_loss },
    { "slices at dynamic places", cache_params, cache_loss },
};
static const struct program *program;

static rax_tree program_params(void)
{
    rax_tree params = rax_tree_new();
    state_of_noise = 12345;
    program->params(params);
    return params;
}

static rax_tensor program_ids(void)
{
    state_of_noise = 777;
    return random_ids(RAX_SHAPE(3, 6), program->loss == llama_loss ? 5 : 7);
}

/* -- gradients against finite differences ----------------------------------------------------------------------------------- */

static void loss_and_gradient(rax_args *in, rax_results *out)
{
    rax_tree params = rax_arg_tree(in, 0);
    rax_tensor loss = program->loss(params, rax_arg_tensor(in, 1));
    rax_return_tensor(out, 0, loss);
    rax_return_tree(out, 1, rax_grad(loss, params));
}

static double loss_of(rax_fn *fn, rax_tree params, rax_tensor ids, rax_tree *grads)
{
    static rax_tensor loss;
    loss = RAX_NO_TENSOR;
    rax_value args[] = { rax_pass_tree(params), rax_pass_tensor(ids) };
    rax_into results[] = { rax_into_tensor(&loss), rax_into_tree(grads) };
    if (!rax_call(fn, args, results))
        fail_msg("%s: %s", program->name, rax_error());
    double value = rax_item(loss, 0);
    rax_tensor_free(loss);
    return value;
}

static void test_gradients_against_finite_differences(void **state)
{
    (void)state;
    const double step = 1e-5, tolerance = 2e-7;     /* central differences in f64: truncation step^2, rounding 1e-16 / step */
    D = RAX_F64;
    assert_true(rax_configure(&(rax_settings){ .quiet = true, .no_jit = true }));
    for (size_t p = 0; p < COUNT(programs); p++) {
        program = &programs[p];
        rax_tree params = program_params(), grads = RAX_NO_TREE, unused = RAX_NO_TREE;
        rax_tensor ids = program_ids();
        rax_fn *fn = rax_function(loss_and_gradient, "loss", "params: tree, ids: i32[B,T]");
        loss_of(fn, params, ids, &grads);
        for (int i = 0; i < rax_tree_size(params); i++)
            for (int64_t j = 0; j < rax_count(rax_leaf(params, i)); j++) {
                rax_tensor leaf = rax_leaf(params, i);
                double value = rax_item(leaf, j), loss[2], got = rax_item(rax_leaf(grads, i), j);
                for (int side = 0; side < 2; side++) {
                    set_item(leaf, j, value + (side ? step : -step));
                    loss[side] = loss_of(fn, params, ids, &unused);
                }
                set_item(leaf, j, value);
                double expected = (loss[1] - loss[0]) / (2 * step);
                if (!(fabs(got - expected) <= tolerance * (1 + fabs(expected))))
                    fail_msg("%s: %s[%d]: gradient %.12g, finite difference %.12g", program->name,
                             rax_leaf_name(params, i), (int)j, got, expected);
            }
        assert_int_equal(rax_stats(fn).compilations, 1);
        rax_function_free(fn);
        rax_tree_free(params);
        rax_tree_free(grads);
        rax_tree_free(unused);
        rax_tensor_free(ids);
    }
}

/* -- the compiler against the interpreter ------------------------------------------------------------------------------------ */

static void descend(rax_args *in, rax_results *out)
{
    rax_tree params = rax_arg_tree(in, 0), next = rax_tree_like(params);
    rax_tensor loss = program->loss(params, rax_arg_tensor(in, 1)), lr = rax_arg_tensor(in, 2);
    rax_tree grads = rax_grad(loss, params);
    for (int i = 0; i < rax_tree_size(params); i++)
        rax_set_leaf(next, i, rax_sub(rax_leaf(params, i), rax_mul(lr, rax_leaf(grads, i))));
    rax_return_tree(out, 0, next);
    rax_return_tensor(out, 1, loss);
}

/* A few steps of gradient descent; the parameters after them, and the losses. */
static rax_tree descended(bool no_jit, int steps, double *losses)
{
    assert_true(rax_configure(&(rax_settings){ .quiet = true, .no_jit = no_jit, .threads = 2 }));
    rax_tree params = program_params();
    rax_tensor ids = program_ids(), loss = RAX_NO_TENSOR;
    rax_fn *fn = rax_function(descend, "descend",
                              D == RAX_F64 ? "params: tree, ids: i32[B,T], lr: f64"
                                           : "params: tree, ids: i32[B,T], lr: f32");
    for (int i = 0; i < steps; i++) {
        rax_value args[] = { rax_pass_tree(params), rax_pass_tensor(ids), rax_pass_number(0.05) };
        rax_into results[] = { rax_into_tree(&params), rax_into_tensor(&loss) };
        if (!rax_call(fn, args, results))
            fail_msg("%s: %s", program->name, rax_error());
        losses[i] = rax_item(loss, 0);
    }
    assert_int_equal(rax_stats(fn).compilations, 1);
    rax_function_free(fn);
    rax_tensor_free(ids);
    rax_tensor_free(loss);
    return params;
}

static void expect_near(double got, double expected, double tolerance, const char *what, int64_t at)
{
    if (!(fabs(got - expected) <= tolerance * (1 + fabs(expected))))
        fail_msg("%s (%s): %s, element %d: compiled %.9g, interpreted %.9g", program->name, rax_dtype_name(D), what,
                 (int)at, got, expected);
}

static void test_compiled_like_interpreted(void **state)
{
    (void)state;
    enum { STEPS = 4 };
    for (size_t p = 0; p < 2 * COUNT(programs); p++) {
        double interpreted[STEPS], compiled[STEPS];
        D = p % 2 ? RAX_F64 : RAX_F32;
        program = &programs[p / 2];
        double tolerance = D == RAX_F64 ? 1e-11 : 2e-5;      /* sums of under 100 terms, four steps deep */
        rax_tree expected = descended(true, STEPS, interpreted), got = descended(false, STEPS, compiled);
        for (int i = 0; i < STEPS; i++)
            expect_near(compiled[i], interpreted[i], tolerance, "loss", i);
        for (int i = 0; i < rax_tree_size(expected); i++)
            for (int64_t j = 0; j < rax_count(rax_leaf(expected, i)); j++)
                expect_near(rax_item(rax_leaf(got, i), j), rax_item(rax_leaf(expected, i), j), tolerance,
                            rax_leaf_name(expected, i), j);
        rax_tree_free(expected);
        rax_tree_free(got);
    }
}

/* -- mixed precision --------------------------------------------------------------------------------------------------------- */

static void mixed_params(rax_tree params)
{
    rax_tree_add(params, random_tensor(RAX_SHAPE(7, 8), 1), "table");
    rax_tree_add(params, random_tensor(RAX_SHAPE(8, 8), 0.6), "w");
    rax_tree_add(params, random_tensor(RAX_SHAPE(8), 1), "norm");
}
static rax_tensor bf16(rax_tensor x) { return rax_cast(x, RAX_BF16); }
static rax_tensor mixed_loss(rax_tree params, rax_tensor ids)
{
    rax_tensor x = rax_gather(W(params, "table"), rax_slice(ids, 1, 0, 5), 0);
    x = rax_add(x, rax_matmul_f32(bf16(rax_rms_norm(x, W(params, "norm"), 1e-5)), bf16(W(params, "w"))));
    rax_tensor h = rax_cast(rax_silu(rax_matmul(bf16(x), bf16(W(params, "w")))), D);
    rax_tensor logits = rax_matmul_f32(bf16(h), bf16(rax_swap(W(params, "table"), 0, 1)));
    return rax_mean(rax_cross_entropy(logits, rax_slice(ids, 1, 1, 5)), RAX_ALL_AXES);
}

static void test_mixed_precision(void **state)
{
    (void)state;
    enum { STEPS = 4 };
    static const struct program mixed = { "mixed precision", mixed_params, mixed_loss };
    double interpreted[STEPS], compiled[STEPS];
    D = RAX_F32;
    program = &mixed;
    rax_tree expected = descended(true, STEPS, interpreted), got = descended(false, STEPS, compiled);
    for (int i = 0; i < STEPS; i++)
        expect_near(compiled[i], interpreted[i], 2e-3, "loss", i);           /* a sum may round to the next bf16, 2^-8 off */
    assert_true(interpreted[STEPS - 1] < interpreted[0]);
    for (int i = 0; i < rax_tree_size(expected); i++)
        for (int64_t j = 0; j < rax_count(rax_leaf(expected, i)); j++)
            expect_near(rax_item(rax_leaf(got, i), j), rax_item(rax_leaf(expected, i), j), 2e-3, rax_leaf_name(expected, i), j);
    rax_tree_free(expected);
    rax_tree_free(got);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_gradients_against_finite_differences),
        TEST(test_compiled_like_interpreted),
        TEST(test_mixed_precision),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
