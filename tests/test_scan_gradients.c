/* Gradients that a program takes inside the body of a scan, by parameters from outside of it, against those of the whole. */
#include "tests/random_tensors.h"

/* -- accumulation over micro-batches ------------------------------------------------------------------------------- */

typedef struct { rax_tree params; rax_tensor doubled; } accumulation;

static rax_tensor square_loss(rax_tensor x, rax_tensor doubled, rax_tree params)
{
    rax_tensor y = rax_tanh(rax_matmul(x, doubled));
    return rax_mean(rax_mul(y, rax_add(y, rax_get(params, "bias"))), RAX_ALL_AXES);
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
    rax_tensor x = rax_arg_tensor(in, 1), w = rax_get(params, "w");                       /* x: [A,B,C] */
    accumulation a = { params, rax_exp(rax_scale(rax_reshape(w, RAX_SHAPE(3, 2)), 2)) };
    rax_tensor sums[] = { rax_scale(w, 0), rax_scale(rax_get(params, "bias"), 0) }, losses;
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

/* -- two loops deep ------------------------------------------------------------------------------------------------ */

/* What lies between the parameter and the loss was computed partly before, partly in the outer loop. */
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_gradients_taken_inside_a_scan),
        TEST(test_gradients_taken_two_scans_deep),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
