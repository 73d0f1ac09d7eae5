/* What train, sample and eval share: a run's configuration becomes a corpus, a folder becomes a model, ids become text. */
#ifndef CLI_RUN_H
#define CLI_RUN_H

#include "cli/cli.h"
#include "nanogpt/model.h"

/* The corpus that a configuration names. To be closed by data_corpus_close. */
bool cli_corpus_open(data_corpus *corpus, const gpt_config *config, const cli_line *line);

/* Its tokenizer alone, for which token files need not be there. NULL where no tokenizer.json says what their tokens stand for. */
bool cli_tokenizer_open(data_corpus *corpus, const gpt_config *config, const cli_line *line);

/* Weights of a finished or running run, and the configuration that it was started with. */
typedef struct {
    gpt_config config;
    gpt_model_config model;
    rax_tree params;
    int64_t iteration;
} cli_model;
/* Configures rax by the line, too. device: NULL for the CPU; a checkpoint does not depend on where it was made. */
bool cli_model_open(cli_model *model, const char *out_dir, const char *device, const cli_line *line);
void cli_model_close(cli_model *model);

typedef struct {
    const char *start;                /* text; "": the end of a text before it; NULL: a newline, or the first token where there is none */
    int64_t max_new_tokens, top_k, num_samples, seed;
    double temperature;
} cli_sampling;

/* Prints the texts, each with its start, as they come. A signal ends them. */
bool cli_print_samples(const gpt_model_config *model, rax_tree params, data_tokenizer *tokenizer, const cli_sampling *sampling);

#endif
