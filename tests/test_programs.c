/* Programs over rax.h that the compiler's authors did not have in mind, small. Each runs by the interpreter and by the
 * compiler, which must agree; gradients are held against finite differences in f64, other results against plain C. */
#include "tests/tracer_support.h"

static rax_dtype D;                                 /* of the parameters in the program that runs now */

static uint32_t state_of_noise;
static double noise(void)                           /* in [-1, 1) */
{
    state_of_noise = state_of_noise * 1664525u + 1013904223u;
    return (int32_t)(state_of_noise ^ state_of_noise >> 15) / 2147483648.0;
}

static void set_item(rax_tensor tensor, int64_t i, double value)
{
    if (rax_dtype_of(tensor) == RAX_F64)
        ((double *)rax_data(tensor))[i] = value;
    else
        ((float *)rax_data(tensor))[i] = (float)value;
}

static rax_tensor random_tensor(rax_shape shape, double scale)
{
    rax_tensor tensor = rax_tensor_new(D, shape);
    for (int64_t i = 0; i < rax_count(tensor); i++)
        set_item(tensor, i, scale * noise());
    return tensor;
}

static rax_tensor random_ids(rax_shape shape, int below)
{
    rax_tensor tensor = rax_tensor_new(RAX_I32, shape);
    for (int64_t i = 0; i < rax_count(tensor); i++)
        ((int32_t *)rax_data(tensor))[i] = (int)((noise() + 1) / 2 * below) % below;
    return tensor;
}

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

/* -- gradients inside a scan: accumulation over micro-batches ------------------------------------------------------------------ */

typedef struct { rax_tree params; rax_tensor doubled; } accumulation;

static rax_tensor square_loss(rax_tensor x, rax_tensor doubled, rax_tree params)
{
    rax_tensor y = rax_tanh(rax_matmul(x, doubled));
    return rax_mean(rax_mul(y, rax_add(y, W(params, "bias"))), RAX_ALL_AXES);
}

/* The weights that the loss sees were computed outside of the loop: its gradient goes through that all the same. */
static void accumulate(void *context, const rax_tensor *carry, const rax_tensor *x, rax_tensor *next, rax_tensor *y)
{
    accumulation *a = context;
    rax_tensor loss = square_loss(x[0], a->doubled, a->params);
    rax_tree grads = rax_grad(loss, a->params);
    next[0] = rax_add(carry[0], rax_leaf(grads, 0));
    next[1] = rax_add(carry[1], rax_leaf(grads, 1));
    y[0] = loss;
}

static void accumulate_step(rax_args *in, rax_results *out)
{
    rax_tree params = rax_arg_tree(in, 0);
    rax_tensor x = rax_arg_tensor(in, 1), w = W(params, "w");                       /* x: [A,B,C] */
    accumulation a = { params, rax_exp(rax_scale(rax_reshape(w, RAX_SHAPE(3, 2)), 2)) };
    rax_tensor sums[] = { rax_scale(w, 0), rax_scale(W(params, "bias"), 0) }, losses;
    rax_scan(accumulate, &a, rax_dim(x, 0), 2, sums, 1, &x, 1, &losses);
    rax_tree direct = rax_grad(square_loss(rax_reshape(x, RAX_SHAPE(-1, 3)), a.doubled, params), params);
    for (int i = 0; i < 2; i++) {
        rax_return_tensor(out, i, rax_scale(sums[i], 1.0 / (double)rax_dim(x, 0)));
        rax_return_tensor(out, 2 + i, rax_leaf(direct, i));
    }
    rax_return_tensor(out, 4, rax_mean(losses, RAX_ALL_AXES));
}

static void test_gradients_taken_inside_a_scan(void **state)
{
    (void)state;
    D = RAX_F64;
    state_of_noise = 4;
    for (int no_jit = 0; no_jit < 2; no_jit++) {
        assert_true(rax_configure(&(rax_settings){ .quiet = true, .no_jit = no_jit }));
        rax_tree params = rax_tree_new();
        assert_true(rax_tree_add(params, random_tensor(RAX_SHAPE(6), 0.4), "w") &&
                    rax_tree_add(params, random_tensor(RAX_SHAPE(2), 1), "bias"));
        rax_tensor x = random_tensor(RAX_SHAPE(5, 4, 3), 1), result[5] = { { 0 } };
        rax_fn *fn = rax_function(accumulate_step, "accumulate", "params: tree, x: f64[A,B,C]");
        rax_value args[] = { rax_pass_tree(params), rax_pass_tensor(x) };
        rax_into results[5];
        for (int i = 0; i < 5; i++)
            results[i] = rax_into_tensor(&result[i]);
        CALL(fn, args, results);
        for (int i = 0; i < 2; i++)
            for (int64_t j = 0; j < rax_count(result[i]); j++) {
                if (!(fabs(rax_item(result[i], j) - rax_item(result[2 + i], j)) < 1e-12))
                    fail_msg("gradient %d[%d]: in the loop %.12g, of the whole %.12g", i, (int)j,
                             rax_item(result[i], j), rax_item(result[2 + i], j));
                assert_true(fabs(rax_item(result[i], j)) > 1e-6);                   /* it did flow */
            }
        rax_function_free(fn);
        for (int i = 0; i < 5; i++)
            rax_tensor_free(result[i]);
        rax_tensor_free(x);
        rax_tree_free(params);
    }
}

/* The same two loops deep: what lies between the parameter and the loss was computed partly before, partly in the
 * outer loop. */
typedef struct { rax_tensor w, before, between; } depths;

static void deep_inner(void *context, const rax_tensor *carry, const rax_tensor *x, rax_tensor *next, rax_tensor *y)
{
    depths *d = context;
    rax_tensor loss = rax_sum(rax_mul(rax_sin(rax_mul(d->between, x[0])), d->before), RAX_ALL_AXES), dw;
    rax_grad_of(loss, 1, &d->w, &dw);
    next[0] = rax_add(carry[0], dw);
    y[0] = loss;
}
static void deep_outer(void *context, const rax_tensor *carry, const rax_tensor *x, rax_tensor *next, rax_tensor *y)
{
    depths *d = context, inside = { d->w, d->before, rax_mul(rax_tanh(d->before), rax_sum(x[0], RAX_ALL_AXES)) };
    rax_tensor sum = carry[0], losses;
    rax_scan(deep_inner, &inside, 3, 1, &sum, 1, x, 1, &losses);
    next[0] = sum;
    y[0] = rax_sum(losses, RAX_ALL_AXES);
}
static void deep_step(rax_args *in, rax_results *out)
{
    rax_tensor w = rax_arg_tensor(in, 0), x = rax_arg_tensor(in, 1), sum = rax_scale(w, 0), losses, direct;      /* x: [2,3] */
    depths d = { w, rax_exp(w), RAX_NO_TENSOR };
    rax_scan(deep_outer, &d, 2, 1, &sum, 1, &x, 1, &losses);
    rax_grad_of(rax_sum(losses, RAX_ALL_AXES), 1, &w, &direct);
    rax_return_tensor(out, 0, sum);
    rax_return_tensor(out, 1, direct);
}

static void test_gradients_taken_two_scans_deep(void **state)
{
    (void)state;
    D = RAX_F64;
    for (int no_jit = 0; no_jit < 2; no_jit++) {
        assert_true(rax_configure(&(rax_settings){ .quiet = true, .no_jit = no_jit }));
        state_of_noise = 21;
        rax_tensor w = random_tensor(RAX_SHAPE(4), 1), x = random_tensor(RAX_SHAPE(2, 3), 1), sum = RAX_NO_TENSOR,
                   direct = RAX_NO_TENSOR;
        rax_fn *fn = rax_function(deep_step, "deep", "w: f64[N], x: f64[A,B]");
        rax_value args[] = { rax_pass_tensor(w), rax_pass_tensor(x) };
        rax_into results[] = { rax_into_tensor(&sum), rax_into_tensor(&direct) };
        CALL(fn, args, results);
        for (int i = 0; i < 4; i++)
            if (!(fabs(rax_item(sum, i) - rax_item(direct, i)) < 1e-12 && fabs(rax_item(sum, i)) > 1e-6))
                fail_msg("gradient %d: in the loops %.12g, of the whole %.12g", i, rax_item(sum, i), rax_item(direct, i));
        rax_function_free(fn);
        rax_tensor_free(w);
        rax_tensor_free(x);
        rax_tensor_free(sum);
        rax_tensor_free(direct);
    }
}

/* -- k-means -------------------------------------------------------------------------------------------------------------- */

static void k_means_step(rax_args *in, rax_results *out)
{
    rax_tensor points = rax_arg_tensor(in, 0), centres = rax_arg_tensor(in, 1);     /* [N,2], [K,2] */
    int64_t K = rax_dim(centres, 0), N = rax_dim(points, 0);
    rax_tensor away = rax_sub(rax_reshape(points, RAX_SHAPE(N, 1, 2)), centres);
    rax_tensor nearest = rax_argmax(rax_neg(rax_sum(rax_mul(away, away), RAX_AXES(-1))), -1);
    rax_tensor sums = rax_scatter_add(rax_constant(RAX_F32, RAX_SHAPE(K, 2), 0), nearest, points, 0);
    rax_tensor counts = rax_sum(rax_one_hot(nearest, K, RAX_F32), RAX_AXES(0));
    rax_tensor mean = rax_div(sums, rax_reshape(rax_max(counts, rax_constant(RAX_F32, RAX_SCALAR, 1)), RAX_SHAPE(K, 1)));
    rax_tensor empty = rax_reshape(rax_eq(counts, rax_constant(RAX_F32, RAX_SCALAR, 0)), RAX_SHAPE(K, 1));
    rax_return_tensor(out, 0, rax_select(empty, centres, mean));
    rax_return_tensor(out, 1, nearest);
}

static void k_means_in_c(const float *points, int n, float *centres, int k, int *nearest)
{
    float sums[8][2] = { { 0 } };
    int counts[8] = { 0 };
    for (int i = 0; i < n; i++) {
        float best = INFINITY;
        for (int j = 0; j < k; j++) {
            float dx = points[2 * i] - centres[2 * j], dy = points[2 * i + 1] - centres[2 * j + 1], d = dx * dx + dy * dy;
            if (d < best) {
                best = d;
                nearest[i] = j;
            }
        }
        sums[nearest[i]][0] += points[2 * i];
        sums[nearest[i]][1] += points[2 * i + 1];
        counts[nearest[i]]++;
    }
    for (int j = 0; j < k; j++)
        for (int a = 0; a < 2 && counts[j]; a++)
            centres[2 * j + a] = sums[j][a] / (float)counts[j];
}

static void test_k_means_like_plain_c(void **state)
{
    (void)state;
    enum { N = 53, K = 5 };
    D = RAX_F32;
    for (int no_jit = 0; no_jit < 2; no_jit++) {
        assert_true(rax_configure(&(rax_settings){ .quiet = true, .no_jit = no_jit }));
        state_of_noise = 99;
        rax_tensor points = random_tensor(RAX_SHAPE(N, 2), 1), centres = random_tensor(RAX_SHAPE(K, 2), 1), nearest = RAX_NO_TENSOR;
        float expected[K * 2];
        int groups[N];
        memcpy(expected, rax_data(centres), sizeof expected);
        rax_fn *fn = rax_function(k_means_step, "k_means", "points: f32[N,2], centres: f32[K,2]");
        for (int i = 0; i < 6; i++) {
            rax_value args[] = { rax_pass_tensor(points), rax_pass_tensor(centres) };
            rax_into results[] = { rax_into_tensor(&centres), rax_into_tensor(&nearest) };
            CALL(fn, args, results);
            k_means_in_c(rax_data(points), N, expected, K, groups);
            for (int j = 0; j < N; j++)
                assert_int_equal((int)rax_item(nearest, j), groups[j]);
            for (int j = 0; j < 2 * K; j++)
                assert_float_equal(rax_item(centres, j), expected[j], 1e-5);
        }
        rax_function_free(fn);
        rax_tensor_free(points);
        rax_tensor_free(centres);
        rax_tensor_free(nearest);
    }
}

/* -- random numbers and dropout ---------------------------------------------------------------------------------------------- */

static void dropout_step(rax_args *in, rax_results *out)
{
    rax_random random = { rax_seed(11), rax_arg_tensor(in, 1) };
    rax_tensor x = rax_arg_tensor(in, 0), y = rax_dropout(random, rax_mul(x, x), 0.25), dx;
    rax_grad_of(rax_sum(y, RAX_ALL_AXES), 1, &x, &dx);
    rax_return_tensor(out, 0, y);
    rax_return_tensor(out, 1, dx);
    rax_return_tensor(out, 2, rax_normal(random, RAX_SHAPE(500)));
}

static void test_dropout_has_one_mask_forward_and_backward(void **state)
{
    (void)state;
    enum { N = 1000 };
    static double first[N];
    D = RAX_F32;
    for (int no_jit = 0; no_jit < 2; no_jit++) {
        assert_true(rax_configure(&(rax_settings){ .quiet = true, .no_jit = no_jit }));
        state_of_noise = 5;
        rax_tensor x = random_tensor(RAX_SHAPE(N), 1), y = RAX_NO_TENSOR, dx = RAX_NO_TENSOR, normal = RAX_NO_TENSOR;
        rax_fn *fn = rax_function(dropout_step, "dropout", "x: f32[N], counter: i32");
        rax_value args[] = { rax_pass_tensor(x), rax_pass_number(3) };
        rax_into results[] = { rax_into_tensor(&y), rax_into_tensor(&dx), rax_into_tensor(&normal) };
        CALL(fn, args, results);
        int kept = 0;
        double square = 0;
        for (int i = 0; i < N; i++) {
            double v = rax_item(x, i);
            bool keeps = rax_item(y, i) != 0;
            kept += keeps;
            assert_float_equal(rax_item(y, i), (keeps ? v * v / 0.75 : 0), 1e-6);
            assert_float_equal(rax_item(dx, i), (keeps ? 2 * v / 0.75 : 0), 1e-6);
            if (no_jit)
                assert_float_equal(rax_item(y, i), first[i], 1e-6);          /* the compiler's mask is the interpreter's */
            first[i] = rax_item(y, i);
        }
        for (int i = 0; i < 500; i++)
            square += rax_item(normal, i) * rax_item(normal, i) / 500;
        assert_true(kept > 700 && kept < 800 && square > 0.75 && square < 1.25);
        rax_function_free(fn);
        rax_tensor_free(x);
        rax_tensor_free(y);
        rax_tensor_free(dx);
        rax_tensor_free(normal);
    }
}

/* -- matmul in all its shapes -------------------------------------------------------------------------------------------------- */

static rax_shape lhs_shape, rhs_shape;
static void matmul_step(rax_args *in, rax_results *out)
{
    rax_tensor a = rax_reshape(rax_arg_tensor(in, 0), lhs_shape), b = rax_reshape(rax_arg_tensor(in, 1), rhs_shape);
    rax_return_tensor(out, 0, rax_matmul(a, b));
}

static int64_t count_of(rax_shape shape)
{
    int64_t count = 1;
    for (int i = 0; i < shape.rank; i++)
        count *= shape.dim[i];
    return count;
}

/* The element of a batch that a batch of the result reads, where leading axes broadcast. */
static int64_t batch_of(rax_shape operand, rax_shape result, int64_t batch)
{
    int64_t at = 0, step = 1;
    for (int i = result.rank - 3; i >= 0; i--) {
        int own = i - (result.rank - operand.rank);
        if (own >= 0) {
            at += operand.dim[own] == 1 ? 0 : batch % result.dim[i] * step;
            step *= operand.dim[own];
        }
        batch /= result.dim[i];
    }
    return at;
}

static void test_matmul_broadcasts_leading_axes(void **state)
{
    (void)state;
    static const struct { rax_shape a, b, c; } rows[] = {
        { { 2, { 3, 4 } }, { 2, { 4, 5 } }, { 2, { 3, 5 } } },
        { { 3, { 2, 3, 4 } }, { 2, { 4, 5 } }, { 3, { 2, 3, 5 } } },
        { { 4, { 2, 6, 3, 4 } }, { 2, { 4, 1 } }, { 4, { 2, 6, 3, 1 } } },
        { { 2, { 3, 4 } }, { 3, { 2, 4, 5 } }, { 3, { 2, 3, 5 } } },
        { { 3, { 2, 3, 4 } }, { 3, { 2, 4, 5 } }, { 3, { 2, 3, 5 } } },
        { { 3, { 2, 3, 4 } }, { 3, { 1, 4, 5 } }, { 3, { 2, 3, 5 } } },
        { { 3, { 1, 3, 4 } }, { 3, { 2, 4, 5 } }, { 3, { 2, 3, 5 } } },
        { { 4, { 2, 1, 3, 4 } }, { 4, { 1, 3, 4, 5 } }, { 4, { 2, 3, 3, 5 } } },
        { { 4, { 2, 3, 1, 4 } }, { 3, { 3, 4, 2 } }, { 4, { 2, 3, 1, 2 } } },
    };
    D = RAX_F64;
    for (size_t i = 0; i < COUNT(rows); i++) {
        lhs_shape = rows[i].a;
        rhs_shape = rows[i].b;
        rax_tensor a = random_tensor(RAX_SHAPE(count_of(lhs_shape)), 1),
                   b = random_tensor(RAX_SHAPE(count_of(rhs_shape)), 1), c = RAX_NO_TENSOR;
        rax_fn *fn = rax_function(matmul_step, "matmul", "a: f64[_], b: f64[_]");
        rax_value args[] = { rax_pass_tensor(a), rax_pass_tensor(b) };
        rax_into results[] = { rax_into_tensor(&c) };
        CALL(fn, args, results);
        rax_shape shape = rax_shape_of(c);
        assert_int_equal(shape.rank, rows[i].c.rank);
        assert_memory_equal(shape.dim, rows[i].c.dim, sizeof *shape.dim * (size_t)shape.rank);
        int64_t M = shape.dim[shape.rank - 2], N = shape.dim[shape.rank - 1], K = lhs_shape.dim[lhs_shape.rank - 1];
        for (int64_t at = 0; at < rax_count(c); at++) {
            int64_t batch = at / (M * N), m = at / N % M, n = at % N;
            int64_t from_a = batch_of(lhs_shape, shape, batch) * M * K, from_b = batch_of(rhs_shape, shape, batch) * K * N;
            double sum = 0;
            for (int64_t k = 0; k < K; k++)
                sum += rax_item(a, from_a + m * K + k) * rax_item(b, from_b + k * N + n);
            if (!(fabs(sum - rax_item(c, at)) < 1e-12))
                fail_msg("row %d, element %d: expected %.12g, got %.12g", (int)i, (int)at, sum, rax_item(c, at));
        }
        rax_function_free(fn);
        rax_tensor_free(a);
        rax_tensor_free(b);
        rax_tensor_free(c);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_gradients_against_finite_differences),
        TEST(test_compiled_like_interpreted),
        TEST(test_mixed_precision),
        TEST(test_gradients_taken_inside_a_scan),
        TEST(test_gradients_taken_two_scans_deep),
        TEST(test_k_means_like_plain_c),
        TEST(test_dropout_has_one_mask_forward_and_backward),
        TEST(test_matmul_broadcasts_leading_axes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
