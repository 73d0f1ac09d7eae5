/* The training and the evaluation step, as rax traces them. */
#include "nanogpt/train_step.h"

/* -- the gradient of one micro-batch, and the mean of several --------------------------------------------------------- */

typedef struct {
    rax_tree params;
    rax_tensor step;
    int64_t count;                    /* micro-batches: A */
    const gpt_model_config *config;
} batch;

/* Loss and gradients of micro-batch `index` (i32[]), divided by A, so that sums over micro-batches are means. */
static rax_tensor micro_batch(const batch *b, rax_tensor x, rax_tensor y, rax_tensor index, rax_tree *grads)
{
    rax_tensor first = rax_mul(b->step, rax_constant(RAX_I32, RAX_SCALAR, (double)b->count));
    rax_random dropout = { .counter = rax_add(first, index) };
    dropout.seed = rax_seed((uint64_t)b->config->seed);
    rax_tensor losses = gpt_losses(b->params, x, y, b->config, &dropout);
    rax_tensor loss = rax_scale(rax_mean(losses, RAX_ALL_AXES), 1.0 / (double)b->count);
    *grads = rax_grad(loss, b->params);
    return loss;
}

/* A turn of the scan. Carries: the gradients so far, in the order of params, then the loss so far. */
static void accumulate(void *context, const rax_tensor *carry, const rax_tensor *x, rax_tensor *next, rax_tensor *y)
{
    (void)y;
    const batch *b = context;
    const int n = rax_tree_size(b->params);
    rax_tree grads;
    rax_tensor loss = micro_batch(b, x[0], x[1], x[2], &grads);
    for (int i = 0; i < n; i++)
        next[i] = rax_add(carry[i], rax_leaf(grads, i));
    next[n] = rax_add(carry[n], loss);
}

/* x, y: i32[A,B,T]. */
static rax_tensor mean_over_micro_batches(batch *b, rax_tensor x, rax_tensor y, rax_tree *grads)
{
    rax_shape one = RAX_SHAPE(rax_dim(x, 1), rax_dim(x, 2));
    if (b->count == 1) {
        x = rax_reshape(x, one);
        y = rax_reshape(y, one);
        return micro_batch(b, x, y, rax_constant(RAX_I32, RAX_SCALAR, 0), grads);
    }

    const int n = rax_tree_size(b->params);
    rax_tensor *carry = rax_alloc(sizeof *carry * (size_t)(n + 1));
    for (int i = 0; i < n; i++)
        carry[i] = rax_constant(RAX_F32, rax_shape_of(rax_leaf(b->params, i)), 0);
    carry[n] = rax_constant(RAX_F32, RAX_SCALAR, 0);
    rax_tensor xs[] = { x, y, rax_iota(RAX_I32, RAX_SHAPE(b->count), 0) };
    rax_scan(accumulate, b, b->count, n + 1, carry, 3, xs, 0, NULL);

    *grads = rax_tree_like(b->params);
    for (int i = 0; i < n; i++)
        rax_set_leaf(*grads, i, carry[i]);
    rax_tensor loss = carry[n];
    rax_free(carry);
    return loss;
}

/* -- steps ---------------------------------------------------------------------------------------------------------- */

static void train_step(rax_args *in, rax_results *out)
{
    rax_tree params = rax_arg_tree(in, 0), moments = rax_arg_tree(in, 1);
    rax_tensor x = rax_arg_tensor(in, 2), y = rax_arg_tensor(in, 3), step = rax_arg_tensor(in, 4);
    const gpt_model_config *model = rax_arg_record(in, 5);
    const gpt_optimizer_config *optimizer = rax_arg_record(in, 6);

    rax_tree grads, next_params, next_moments;
    batch b = { params, step, rax_dim(x, 0), model };
    rax_tensor loss = mean_over_micro_batches(&b, x, y, &grads);
    rax_tensor norm = gpt_global_norm(grads), lr = gpt_learning_rate(step, optimizer);
    gpt_adamw(params, moments, gpt_clip(grads, norm, optimizer), step, lr, optimizer, &next_params, &next_moments);

    rax_return_tree(out, 0, next_params);
    rax_return_tree(out, 1, next_moments);
    rax_return_tensor(out, 2, loss);
    rax_return_tensor(out, 3, norm);
    rax_return_tensor(out, 4, lr);
}

static void eval_step(rax_args *in, rax_results *out)
{
    rax_tree params = rax_arg_tree(in, 0);
    rax_tensor x = rax_arg_tensor(in, 1), y = rax_arg_tensor(in, 2);
    const gpt_model_config *model = rax_arg_record(in, 3);

    rax_tensor losses = gpt_losses(params, x, y, model, NULL), none = rax_constant(RAX_F32, RAX_SCALAR, 0);
    rax_tensor targets = rax_reshape(y, rax_shape_of(losses));
    rax_tensor real = rax_le(rax_constant(RAX_I32, RAX_SCALAR, 0), targets);
    rax_tensor sum = rax_sum(rax_select(real, losses, none), RAX_ALL_AXES);
    rax_return_tensor(out, 0, rax_div(sum, rax_sum(rax_cast(real, RAX_F32), RAX_ALL_AXES)));
}

rax_fn *gpt_train_step_new(void)
{
    return rax_function(train_step, "train_step",
                        "params: tree, opt_state: tree, x: i32[A,B,T], y: i32[A,B,T], step: i32, "
                        "model_config: record, optimizer: record");
}

rax_fn *gpt_eval_step_new(void)
{
    return rax_function(eval_step, "eval_step", "params: tree, x: i32[B,T], y: i32[B,T], model_config: record");
}
