/* A training run: iterations, evaluations, metrics, checkpoints. The user of train_step.h. */
#ifndef GPT_TRAIN_H
#define GPT_TRAIN_H

#include <stddef.h>
#include <stdint.h>

#include "nanogpt/config.h"
#include "rax.h"

/* Where batches come from: B rows of T token ids each into x and y, i32[B,T], of which y is x one token on. Each function
 * depends on its number alone, so that a run that is resumed sees what it would have seen. */
typedef void gpt_batch(void *context, uint64_t m, int32_t *x, int32_t *y);
/* Part k of a whole split, in order, every target once. Returns how many targets are real; behind them y is -1. 0: the split
 * ended before. */
typedef size_t gpt_part(void *context, uint64_t k, int32_t *x, int32_t *y);

typedef struct {
    void *context;
    gpt_batch *train;                 /* micro-batch m of the whole run */
    gpt_batch *val;                   /* random batch m of the validation split; NULL: there is none */
    gpt_part *val_part;               /* the whole of it */
} gpt_batches;

typedef struct gpt_trainer gpt_trainer;

/* Makes or reads the weights, as config->init_from says, and prepares out_dir. config and what batches point to are borrowed
 * until the trainer is freed. NULL: rax_error(). */
gpt_trainer *gpt_trainer_new(const gpt_config *config, const gpt_batches *batches);
void gpt_trainer_free(gpt_trainer *trainer);              /* NULL is fine */

/* What is to be said of a run before it goes on, in one line; NULL: nothing. */
const char *gpt_trainer_warning(const gpt_trainer *trainer);

/* Asked between programs: whether the run is to end before its time, if the answer is not 0. */
typedef int gpt_stop(void);

/* Runs to the end, or until stop says so, and writes a checkpoint. A loss that is not a number ends the run with an error, and
 * leaves the last checkpoint as it was. */
bool gpt_trainer_run(gpt_trainer *trainer, gpt_stop *stop);

rax_tree gpt_trainer_params(const gpt_trainer *trainer);  /* the trainer's */
rax_fn *gpt_trainer_train_step(const gpt_trainer *trainer);      /* likewise; for what rax tells of them */
rax_fn *gpt_trainer_eval_step(const gpt_trainer *trainer);       /* NULL where there is no evaluation */

/* The mean loss over a whole split, part by part. B and T are the configuration's. Where stop ends it the result is false and
 * rax_error() is "". */
bool gpt_evaluate(const gpt_config *config, rax_tree params, gpt_part *part, void *context, gpt_stop *stop, double *loss);

#endif
