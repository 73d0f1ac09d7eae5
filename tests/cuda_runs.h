/* Training runs by a backend, for tests of the CUDA backend: rax train, without the command line. */
#ifndef TESTS_CUDA_RUNS_H
#define TESTS_CUDA_RUNS_H

#include "tests/golden_runs.h"

#include "data/data.h"
#include "nanogpt/train.h"
#include "tests/cuda_standin.h"

typedef struct { data_loader *train, *val; } run_loaders;

static void run_train_batch(void *context, uint64_t m, int32_t *x, int32_t *y) { data_loader_batch(((run_loaders *)context)->train, m, x, y); }
static void run_val_batch(void *context, uint64_t m, int32_t *x, int32_t *y) { data_loader_batch(((run_loaders *)context)->val, m, x, y); }
static size_t run_val_part(void *context, uint64_t k, int32_t *x, int32_t *y) { return data_loader_walk(((run_loaders *)context)->val, k, x, y); }

MAYBE_UNUSED static int run_never(void) { return 0; }

/* Told the trainer of a run that has ended well, before it is freed. */
typedef void run_end(const gpt_config *config, const gpt_trainer *trainer);

/* A run on the configuration's device, by a process of its own as far as rax goes. False: rax_error(). */
static bool run_training(const gpt_config *config, const char *cache_dir, gpt_stop *stop, run_end *end)
{
    data_corpus corpus;
    data_places places = {0};
    bool cuda = config->device == GPT_DEVICE_CUDA;
    if (cuda)
        standin_use();
    if (!rax_configure(&(rax_settings){ .device = cuda ? "cuda" : "cpu", .quiet = true, .cache_dir = cache_dir }) ||
        !data_corpus_open_files(&corpus, config->train_data, config->val_data, config->vocab_size, &places))
        fail_msg("%s", rax_error());
    data_order order = config->sampling == GPT_SAMPLING_RANDOM ? DATA_RANDOM : DATA_SEQUENTIAL;
    run_loaders l = { .train = data_loader_new(corpus.train, order, (uint64_t)config->seed, DATA_STREAM_TRAIN, config->batch_size, config->block_size),
                      .val = data_loader_new(corpus.val, DATA_RANDOM, (uint64_t)config->seed, DATA_STREAM_EVAL_VAL, config->batch_size, config->block_size) };
    assert_true(l.train && l.val);
    gpt_batches batches = { .context = &l, .train = run_train_batch, .val = run_val_batch, .val_part = run_val_part };
    gpt_trainer *trainer = gpt_trainer_new(config, &batches);
    bool ran = trainer && gpt_trainer_run(trainer, stop);
    if (ran && end)
        end(config, trainer);
    gpt_trainer_free(trainer);
    data_loader_free(l.train);
    data_loader_free(l.val);
    data_corpus_close(&corpus);
    rax_shutdown();
    if (cuda)
        standin_end();
    return ran;
}

#endif
