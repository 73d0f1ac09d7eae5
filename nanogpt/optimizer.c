/* The update of the weights. */
#include "nanogpt/optimizer.h"

#include <math.h>

static const rax_field optimizer_fields[] = {
    RAX_FIELD(gpt_optimizer_config, learning_rate, DOUBLE), RAX_FIELD(gpt_optimizer_config, min_lr, DOUBLE),
    RAX_FIELD(gpt_optimizer_config, warmup_iters, INT),     RAX_FIELD(gpt_optimizer_config, lr_decay_iters, INT),
    RAX_FIELD(gpt_optimizer_config, weight_decay, DOUBLE),  RAX_FIELD(gpt_optimizer_config, beta1, DOUBLE),
    RAX_FIELD(gpt_optimizer_config, beta2, DOUBLE),         RAX_FIELD(gpt_optimizer_config, grad_clip, DOUBLE),
};
const rax_record_type gpt_optimizer_record = RAX_RECORD(gpt_optimizer_config, optimizer_fields);

gpt_optimizer_config gpt_optimizer_of(const gpt_config *config)
{
    return (gpt_optimizer_config){
        .learning_rate = config->learning_rate, .min_lr = config->min_lr, .warmup_iters = config->warmup_iters,
        .lr_decay_iters = config->lr_decay_iters, .weight_decay = config->weight_decay, .beta1 = config->beta1,
        .beta2 = config->beta2, .grad_clip = config->grad_clip,
    };
}

rax_tree gpt_moments_new(rax_tree params)
{
    const int n = rax_tree_size(params);
    rax_tree moments = rax_tree_new();
    for (int i = 0; i < 2 * n; i++) {
        rax_tensor zeros = rax_tensor_new(RAX_F32, rax_shape_of(rax_leaf(params, i % n)));
        if (!rax_tree_add(moments, zeros, "%c.%s", i < n ? 'm' : 'v', rax_leaf_name(params, i % n))) {
            rax_tree_free(moments);
            return RAX_NO_TREE;
        }
    }
    return moments;
}

static rax_tensor number(double value) { return rax_constant(RAX_F64, RAX_SCALAR, value); }

rax_tensor gpt_learning_rate(rax_tensor step, const gpt_optimizer_config *config)
{
    const double warmup = config->warmup_iters, decay = config->lr_decay_iters;
    const double high = config->learning_rate, low = config->min_lr;
    rax_tensor it = rax_cast(step, RAX_F64), lr = number(low);

    if (warmup < decay) {
        rax_tensor share = rax_scale(rax_shift(it, -warmup), 1 / (decay - warmup));      /* of the way down: 0 to 1 */
        rax_tensor cosine = rax_scale(rax_shift(rax_cos(rax_scale(share, M_PI)), 1), 0.5);
        rax_tensor decayed = rax_shift(rax_scale(cosine, high - low), low);
        lr = rax_select(rax_lt(it, number(decay)), decayed, lr);
    }
    if (warmup > 0) {
        rax_tensor end = number(warmup), warm = rax_div(rax_scale(it, high), end);
        lr = rax_select(rax_lt(it, end), warm, lr);
    }
    return lr;
}

rax_tensor gpt_global_norm(rax_tree grads)
{
    rax_tensor sum = rax_constant(RAX_F32, RAX_SCALAR, 0);
    for (int i = 0; i < rax_tree_size(grads); i++) {
        rax_tensor g = rax_leaf(grads, i);
        sum = rax_add(sum, rax_sum(rax_mul(g, g), RAX_ALL_AXES));
    }
    return rax_sqrt(sum);
}

rax_tree gpt_clip(rax_tree grads, rax_tensor norm, const gpt_optimizer_config *config)
{
    if (config->grad_clip == 0)
        return grads;
    rax_tree clipped = rax_tree_like(grads);
    rax_tensor limit = rax_constant(RAX_F32, RAX_SCALAR, config->grad_clip), one = rax_constant(RAX_F32, RAX_SCALAR, 1);
    rax_tensor factor = rax_min(one, rax_div(limit, rax_shift(norm, 1e-6)));
    for (int i = 0; i < rax_tree_size(grads); i++)
        rax_set_leaf(clipped, i, rax_mul(rax_leaf(grads, i), factor));
    return clipped;
}

/* 1 - beta^t with t = step + 1. */
static rax_tensor bias_correction(rax_tensor step, double beta)
{
    rax_tensor t = rax_shift(rax_cast(step, RAX_F64), 1), one = number(1);
    return rax_cast(rax_sub(one, rax_pow(number(beta), t)), RAX_F32);
}

void gpt_adamw(rax_tree params, rax_tree moments, rax_tree grads, rax_tensor step, rax_tensor lr,
               const gpt_optimizer_config *config, rax_tree *next_params, rax_tree *next_moments)
{
    const int n = rax_tree_size(params);
    rax_adamw_options options = { .lr = rax_cast(lr, RAX_F32), .beta1 = config->beta1, .beta2 = config->beta2, .epsilon = 1e-8 };
    options.correction1 = bias_correction(step, config->beta1);
    options.correction2 = bias_correction(step, config->beta2);
    *next_params = rax_tree_like(params);
    *next_moments = rax_tree_like(moments);
    for (int i = 0; i < n; i++) {
        rax_tensor w = rax_leaf(params, i), m = rax_leaf(moments, i), v = rax_leaf(moments, n + i);
        options.weight_decay = rax_rank(w) >= 2 ? config->weight_decay : 0;
        rax_adamw(&w, &m, &v, rax_leaf(grads, i), options);
        rax_set_leaf(*next_params, i, w);
        rax_set_leaf(*next_moments, i, m);
        rax_set_leaf(*next_moments, n + i, v);
    }
}
