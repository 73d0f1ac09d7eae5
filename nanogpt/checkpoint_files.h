/* A run's folder: checkpoints that are whole or absent whenever the process is killed, and the metrics.
 *
 *     OUT_DIR/ckpt-000250/model.safetensors, optimizer.safetensors, config.json, state.json
 *     OUT_DIR/latest -> ckpt-000250
 *     OUT_DIR/metrics.jsonl
 *
 * It knows named arrays (safetensors.h) and nothing of tensors. All functions here return false or NULL with rax_error(). */
#ifndef GPT_CHECKPOINT_FILES_H
#define GPT_CHECKPOINT_FILES_H

#include <stdbool.h>
#include <stdint.h>

#include "nanogpt/config.h"
#include "nanogpt/safetensors.h"

/* Makes the folder where it is missing, and writes and removes a file in it: what would stop the first checkpoint is an error
 * before the training, and not after an hour of it. */
bool gpt_out_dir_prepare(const char *out_dir);

/* -- checkpoints ---------------------------------------------------------------------------------------------------- */

typedef struct {
    int64_t iteration;          /* the next one to run: the updates made so far */
    int64_t seed;
    const char *tuned;          /* how products were computed: rax_tuned */
    const gpt_config *config;
} gpt_checkpoint_state;

/* Writes OUT_DIR/ckpt-<iteration>, points `latest` at it, then removes what killed writes have left and all checkpoints but
 * this one and the newest before it. Later ones than this belong to a run that has been given up. The whole is written
 * beside the old one and flushed before its name appears. */
bool gpt_checkpoint_write(const char *out_dir, const gpt_checkpoint_state *state, const gpt_array *model, int model_count,
                          const gpt_array *optimizer, int optimizer_count);

/* A checkpoint, mapped. Its parts are its own. optimizer is NULL where it was not asked for. */
typedef struct {
    char *folder;
    int64_t iteration, seed;
    char *tuned;
    gpt_config config;
    gpt_safetensors *model, *optimizer;
} gpt_checkpoint;

/* path: an OUT_DIR, whose latest is meant, or the folder of one checkpoint. The digests of the files that are opened are
 * checked against state.json. */
gpt_checkpoint *gpt_checkpoint_open(const char *path, bool with_optimizer);
void gpt_checkpoint_close(gpt_checkpoint *checkpoint);    /* NULL is fine */

/* -- metrics -------------------------------------------------------------------------------------------------------- */

typedef struct { const char *name; double value; } gpt_metric;

/* OUT_DIR/metrics.jsonl, a JSON object a line. Opening keeps the rows with iter < first_iteration (0: none) and drops the
 * others, by a whole new file in place of the old one; rows are then appended. Until it is closed no other run gets into the folder. */
typedef struct gpt_metrics gpt_metrics;
gpt_metrics *gpt_metrics_open(const char *out_dir, int64_t first_iteration);

/* {"iter": 3, "loss": 4.184370994567871, ...}: as many digits as tell the double from all others; null for what is not finite.
 * A row is in the file when the call returns. */
bool gpt_metrics_row(gpt_metrics *metrics, int64_t iteration, const gpt_metric *values, int count);
bool gpt_metrics_flush(gpt_metrics *metrics);             /* to the disk: before the checkpoint that they lead to */
void gpt_metrics_close(gpt_metrics *metrics);             /* NULL is fine */

#endif
