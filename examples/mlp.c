/* A small network learns which of two spirals a point lies on. The model, the loss and the optimizer are the thirty lines of
 * train_step; rax traces them at the first call, differentiates and compiles, and runs the compiled step from then on. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "rax.h"

/* (params, x, y, lr) -> (params, loss, share of right answers) */
static void train_step(rax_args *in, rax_results *out)
{
    rax_tree params = rax_arg_tree(in, 0);
    rax_tensor x = rax_arg_tensor(in, 1), y = rax_arg_tensor(in, 2), lr = rax_arg_tensor(in, 3);

    rax_tensor h1 = rax_tanh(rax_add(rax_matmul(x, rax_get(params, "w1")), rax_get(params, "b1")));
    rax_tensor h2 = rax_tanh(rax_add(rax_matmul(h1, rax_get(params, "w2")), rax_get(params, "b2")));
    rax_tensor logits = rax_add(rax_matmul(h2, rax_get(params, "w3")), rax_get(params, "b3"));
    rax_tensor loss = rax_mean(rax_cross_entropy(logits, y), RAX_ALL_AXES);
    rax_tensor right = rax_mean(rax_cast(rax_eq(rax_argmax(logits, -1), y), RAX_F32), RAX_ALL_AXES);

    rax_tree grads = rax_grad(loss, params), next = rax_tree_like(params);
    for (int i = 0; i < rax_tree_size(params); i++)
        rax_set_leaf(next, i, rax_sub(rax_leaf(params, i), rax_mul(lr, rax_leaf(grads, i))));
    rax_return_tree(out, 0, next);
    rax_return_tensor(out, 1, loss);
    rax_return_tensor(out, 2, right);
}

static double uniform(void) { return rand() / (RAND_MAX + 1.0); }

static void add_layer(rax_tree params, int n, int64_t from, int64_t to)
{
    rax_tensor w = rax_tensor_new(RAX_F32, RAX_SHAPE(from, to));
    for (int64_t i = 0; i < from * to; i++)
        ((float *)rax_data(w))[i] = (float)((2 * uniform() - 1) * sqrt(3.0 / (double)from));
    rax_tree_add(params, w, "w%d", n);
    rax_tree_add(params, rax_tensor_new(RAX_F32, RAX_SHAPE(to)), "b%d", n);
}

int main(void)
{
    enum { POINTS = 256, HIDDEN = 48, STEPS = 2000 };
    rax_tensor x = rax_tensor_new(RAX_F32, RAX_SHAPE(POINTS, 2)), y = rax_tensor_new(RAX_I32, RAX_SHAPE(POINTS));
    for (int i = 0; i < POINTS; i++) {
        double turn = 2 * M_PI * (i / 2) / (POINTS / 2), radius = 0.1 + 0.15 * turn, angle = turn + M_PI * (i % 2);
        ((float *)rax_data(x))[2 * i] = (float)(radius * cos(angle));
        ((float *)rax_data(x))[2 * i + 1] = (float)(radius * sin(angle));
        ((int32_t *)rax_data(y))[i] = i % 2;
    }
    rax_tree params = rax_tree_new();
    add_layer(params, 1, 2, HIDDEN);
    add_layer(params, 2, HIDDEN, HIDDEN);
    add_layer(params, 3, HIDDEN, 2);

    rax_fn *step = rax_function(train_step, "train_step", "params: tree{w1: f32[D,H]}, x: f32[B,D], y: i32[B], lr: f32");
    rax_tensor loss = RAX_NO_TENSOR, right = RAX_NO_TENSOR;
    for (int i = 0; i < STEPS; i++) {
        double lr = 0.5 * 0.5 * (1 + cos(M_PI * i / STEPS));
        rax_value args[] = { rax_pass_tree(params), rax_pass_tensor(x), rax_pass_tensor(y), rax_pass_number(lr) };
        rax_into results[] = { rax_into_tree(&params), rax_into_tensor(&loss), rax_into_tensor(&right) };
        if (!rax_call(step, args, results)) {
            fprintf(stderr, "%s\n", rax_error());
            return rax_error_kind_of();
        }
        if (i % 200 == 0 || i == STEPS - 1)
            printf("step %4d: loss %.4f, %.1f %% right\n", i, rax_item(loss, 0), 100 * rax_item(right, 0));
    }
    rax_function_free(step);
    rax_tree_free(params);
    rax_tensor_free(x);
    rax_tensor_free(y);
    rax_tensor_free(loss);
    rax_tensor_free(right);
    rax_shutdown();
    return 0;
}
