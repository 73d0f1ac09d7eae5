/* AdamW with warmup and cosine decay, and clipping of the global norm: as traced ops, so that one program holds the whole
 * update. `step` is the iteration, i32[], counted from 0.
 *
 * The schedule and the bias corrections are computed in f64 inside the program: 1 - beta^t loses its digits in f32 while t is
 * small, and they cost nothing. */
#ifndef GPT_OPTIMIZER_H
#define GPT_OPTIMIZER_H

#include "nanogpt/config.h"
#include "rax.h"

typedef struct {
    double learning_rate, min_lr;
    int warmup_iters, lr_decay_iters;
    double weight_decay, beta1, beta2, grad_clip;
} gpt_optimizer_config;
extern const rax_record_type gpt_optimizer_record;
gpt_optimizer_config gpt_optimizer_of(const gpt_config *config);

/* The moments of every parameter, as zeros: m.NAME for all names, then v.NAME. RAX_NO_TREE where there is no memory. */
rax_tree gpt_moments_new(rax_tree params);

/* -- inside a step -------------------------------------------------------------------------------------------------- */

/* f64[]: learning_rate · step / warmup_iters while step < warmup_iters; a cosine to min_lr at lr_decay_iters; then min_lr. */
rax_tensor gpt_learning_rate(rax_tensor step, const gpt_optimizer_config *config);

/* f32[]: the L2 norm of all leaves together. */
rax_tensor gpt_global_norm(rax_tree grads);

/* grads · min(1, grad_clip / (norm + 1e-6)); grads as they are where grad_clip is 0. */
rax_tree gpt_clip(rax_tree grads, rax_tensor norm, const gpt_optimizer_config *config);

/* One update; decay on tensors of two or more axes alone. */
void gpt_adamw(rax_tree params, rax_tree moments, rax_tree grads, rax_tensor step, rax_tensor lr,
               const gpt_optimizer_config *config, rax_tree *next_params, rax_tree *next_moments);

#endif
