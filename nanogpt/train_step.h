/* The two programs of training. */
#ifndef GPT_TRAIN_STEP_H
#define GPT_TRAIN_STEP_H

#include "nanogpt/model.h"
#include "nanogpt/optimizer.h"
#include "rax.h"

/* train_step(params, opt_state, x, y, step, model_config, optimizer) -> (params, opt_state, loss, grad_norm, lr): one update,
 * forward to AdamW, over x, y i32[A,B,T], A micro-batches of B rows. loss and gradients are means over the micro-batches. A
 * micro-batch more is a turn more of a loop, not a longer program. loss, grad_norm: f32[]; lr: f64[]. */
rax_fn *gpt_train_step_new(void);

/* eval_step(params, x, y, model_config) -> loss, f32[]: the mean over the targets that are not negative; no dropout. */
rax_fn *gpt_eval_step_new(void);

#endif
