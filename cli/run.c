/* Corpora, models and texts of a run. */
#include "cli/run.h"

#include <stdio.h>
#include <string.h>

#include "nanogpt/checkpoint_files.h"
#include "nanogpt/sample.h"
#include "nanogpt/weights.h"

bool cli_corpus_open(data_corpus *corpus, const gpt_config *config, const cli_line *line)
{
    data_places places = cli_places(line);
    if (config->dataset)
        return data_corpus_open(corpus, config->dataset, config->vocab_size, &places);
    return data_corpus_open_files(corpus, config->train_data, config->val_data, config->vocab_size, &places);
}

bool cli_tokenizer_open(data_corpus *corpus, const gpt_config *config, const cli_line *line)
{
    data_places places = cli_places(line);
    *corpus = (data_corpus){0};
    return config->dataset ? cli_corpus_open(corpus, config, line) : data_tokenizer_beside(config->train_data, &places, &corpus->tokenizer);
}

/* -- a model out of a folder ------------------------------------------------------------------------------------------ */

/* The configuration goes over from the checkpoint: its strings are freed by one of the two. */
static bool read_checkpoint(cli_model *model, gpt_checkpoint *checkpoint)
{
    model->iteration = checkpoint->iteration;
    model->config = checkpoint->config;
    checkpoint->config = (gpt_config){0};
    model->model = gpt_model_of(&model->config);
    model->params = gpt_params_new(&model->model);
    return rax_is_tree(model->params) && gpt_weights_read(model->params, checkpoint->model);
}

bool cli_model_open(cli_model *model, const char *out_dir, const char *device, const cli_line *line)
{
    rax_settings settings = cli_settings(line);
    settings.device = device;
    *model = (cli_model){0};
    if (!rax_configure(&settings))
        return false;
    gpt_checkpoint *checkpoint = gpt_checkpoint_open(out_dir, false);
    bool opened = checkpoint && read_checkpoint(model, checkpoint);
    gpt_checkpoint_close(checkpoint);
    return opened;
}

void cli_model_close(cli_model *model)
{
    rax_tree_free(model->params);
    gpt_config_free(&model->config);
    *model = (cli_model){0};
}

/* -- texts ------------------------------------------------------------------------------------------------------------ */

/* How a text begins that is told nothing: every tokenizer has a first token, and few have no newline. */
static data_text default_start(data_tokenizer *tokenizer)
{
    data_text newline = { "\n", 1 };
    data_ids ids = {0};
    bool known = data_encode(tokenizer, newline, &ids);
    data_ids_free(&ids);
    rax_error_clear();
    return known ? newline : data_token_text(tokenizer, 0);
}

/* The ids of the start. A text that begins with nothing begins after the end of another. */
static bool encode_start(data_tokenizer *tokenizer, data_text start, data_ids *ids)
{
    int32_t end = data_tokenizer_end_of_text(tokenizer);
    if (!data_encode(tokenizer, start, ids))
        return false;
    if (ids->len > 0)
        return true;
    if (end < 0)
        return rax_fail(RAX_MISTAKE, "--start: is empty, and these tokens have none that begins a text");
    if (!data_ids_reserve(ids, 1))
        return false;
    ids->at[ids->len++] = end;
    return true;
}

static bool print_token(void *context, int32_t id)
{
    data_text text = data_token_text(context, id);
    fwrite(text.at, 1, text.len, stdout);
    fflush(stdout);
    return cli_signal() == 0;
}

bool cli_print_samples(const gpt_model_config *model, rax_tree params, data_tokenizer *tokenizer, const cli_sampling *sampling)
{
    gpt_sample_options options = {
        .max_new_tokens = (int)sampling->max_new_tokens, .temperature = sampling->temperature, .top_k = (int)sampling->top_k,
        .seed = (uint64_t)sampling->seed, .n_ids = data_tokenizer_vocab_size(tokenizer),
        .end_of_text = data_tokenizer_end_of_text(tokenizer),
    };
    const data_text start = sampling->start ? (data_text){ sampling->start, strlen(sampling->start) } : default_start(tokenizer);
    data_ids prompt = {0};
    gpt_sampler *sampler = gpt_sampler_new(model, params);
    bool printed = sampler && encode_start(tokenizer, start, &prompt);
    for (int64_t i = 0; printed && i < sampling->num_samples && cli_signal() == 0; i++) {
        if (i > 0)
            printf("---------------\n");
        fwrite(start.at, 1, start.len, stdout);
        printed = gpt_sample(sampler, &options, (uint32_t)i, prompt.at, (int)prompt.len, print_token, tokenizer);
        printf("\n");
    }
    data_ids_free(&prompt);
    gpt_sampler_free(sampler);
    return printed;
}
