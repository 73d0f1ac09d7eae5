/* A training run: iterations, evaluations, metrics, checkpoints. The user of train_step.h. */
#ifndef GPT_TRAIN_H
#define GPT_TRAIN_H

#include <signal.h>
#include <stddef.h>
#include <stdint.h>

#include "nanogpt/config.h"
#include "rax.h"

/* Where batches come from: B rows of T token ids each into x and y, i32[B,T], of which y is x one token on. Each function
 * depends on its number alone, so that a run that is resumed sees what it would have seen. */
typedef struct {
    void *context;
    void (*train)(void *context, uint64_t m, int32_t *x, int32_t *y);        /* micro-batch m of the whole run */
    /* Of the validation data; NULL where there is none. val: random batch m. val_part: part k of the whole, in order; returns
     * how many targets are real; behind them y is -1. 0: the data ended before. */
    void (*val)(void *context, uint64_t m, int32_t *x, int32_t *y);
    size_t (*val_part)(void *context, uint64_t k, int32_t *x, int32_t *y);
} gpt_batches;

typedef struct gpt_trainer gpt_trainer;

/* Makes or reads the weights, as config->init_from says, and prepares out_dir. A resumed run without a seed of its own takes
 * that of the checkpoint. config and batches are borrowed until the trainer is freed. NULL: rax_error(). */
gpt_trainer *gpt_trainer_new(gpt_config *config, const gpt_batches *batches);
void gpt_trainer_free(gpt_trainer *trainer);              /* NULL is fine */

/* Runs to the end, or until *stop is not 0: then the iteration that runs is finished, and in both cases a checkpoint written.
 * A loss that is not a number ends the run with an error, and leaves the last checkpoint as it was. */
bool gpt_trainer_run(gpt_trainer *trainer, const volatile sig_atomic_t *stop);

rax_tree gpt_trainer_params(const gpt_trainer *trainer);  /* the trainer's */

/* The mean loss over all that val_part gives. B and T are the configuration's. False where *stop ended it: then rax_error()
 * is "". */
typedef size_t gpt_batch_part(void *context, uint64_t k, int32_t *x, int32_t *y);
bool gpt_evaluate(const gpt_config *config, rax_tree params, gpt_batch_part *part, void *context,
                  const volatile sig_atomic_t *stop, double *loss);

#endif
