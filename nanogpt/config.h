/* A run's configuration: flat JSON with nanoGPT's names. One table in config.c has a row a key (name, type, bounds, default,
 * help); the reader, the overrides, --help, state.json and the suggestion for a mistyped key all come from it.
 *
 *     gpt_config config;
 *     gpt_setting more[] = { { "n_layer", "2" } };                         --n_layer=2, with - and _ alike in the name
 *     if (!gpt_config_load(&config, "configs/shakespeare.json", more, 1)) ... rax_error() names the file and the key
 *     gpt_config_free(&config);
 */
#ifndef GPT_CONFIG_H
#define GPT_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct cJSON;

/* The values of a choice stand in the order of its names in the table. */
typedef enum { GPT_DTYPE_FP32, GPT_DTYPE_BF16 } gpt_dtype;
typedef enum { GPT_SAMPLING_RANDOM, GPT_SAMPLING_SEQUENTIAL } gpt_sampling;
typedef enum { GPT_DEVICE_CPU, GPT_DEVICE_CUDA } gpt_device;

/* What gpt_config_check has passed is within its bounds. Strings belong to the config; NULL where the key has no value. */
typedef struct {
    int n_layer, n_head, n_embd, block_size, vocab_size;
    bool bias;
    double dropout;
    gpt_dtype dtype;
    int batch_size, gradient_accumulation_steps, max_iters;
    double learning_rate, min_lr;
    int warmup_iters, lr_decay_iters;
    double weight_decay, beta1, beta2, grad_clip;
    int64_t seed;
    char *dataset;                      /* a corpus by name, or else token files: */
    char *train_data, *val_data;        /* val_data may be NULL: then nothing can be evaluated */
    gpt_sampling sampling;
    char *init_from;                    /* "scratch", "resume", or a folder */
    char *out_dir;
    int eval_interval, eval_iters, log_interval, checkpoint_interval;     /* eval_iters 0: the whole split */
    int threads;
    gpt_device device;
    uint64_t given;                     /* bit i: key i was set by a file or an override, and is not the default */
    uint64_t overridden;                /* bit i: by an override, and not by a file after it */
} gpt_config;

typedef struct { const char *key, *value; } gpt_setting;

/* The whole way: defaults, the file, then the settings, then the checks. The config is to be freed in either case. */
bool gpt_config_load(gpt_config *config, const char *path, const gpt_setting *settings, int count);

/* The steps of it. A file or a list of settings overlays what was there before; of dataset and train_data, the later layer
 * that names one takes the place of the other. Relative paths in a file are joined to its folder; in settings they stay. */
void gpt_config_init(gpt_config *config);
void gpt_config_free(gpt_config *config);
bool gpt_config_override(gpt_config *config, const gpt_setting *settings, int count);
bool gpt_config_check(const gpt_config *config, const char *file);        /* what keys owe each other, and none is missing */

/* As JSON with every key that has a value, paths absolute, numbers to the last bit; what is printed and read back is equal.
 * gpt_config_from_json overlays an object; origin ("out/state.json") begins its errors, folder is where paths begin. */
struct cJSON *gpt_config_to_json(const gpt_config *config);               /* the caller's, for cJSON_Delete */
bool gpt_config_from_json(gpt_config *config, const struct cJSON *object, const char *origin, const char *folder);
char *gpt_config_text(const gpt_config *config);                          /* the caller's, for rax_free */

/* Whether the weights of one fit the other: n_layer, n_head, n_embd, block_size, vocab_size, bias. The error begins with
 * origin and names the first key that differs. */
bool gpt_config_same_model(const gpt_config *now, const gpt_config *then, const char *origin);

/* The keys in the order of the table. */
int gpt_config_key_count(void);
const char *gpt_config_key(int key);                                      /* "n_layer" */
int gpt_config_find(const char *name);                                    /* -1: no such key; - and _ are alike */
bool gpt_config_is_given(const gpt_config *config, const char *name);
char *gpt_config_key_help(int key);                                       /* one line; the caller's, for rax_free */
const char *gpt_config_key_values(int key);                               /* what stands for the value in help: "INTEGER" */

/* The word of the list that is nearest to what was typed, by the letters to put in, take out or swap; - and _ are alike.
 * NULL for an empty list. */
const char *gpt_nearest(const char *typed, const char *const *words, int count);

#endif
