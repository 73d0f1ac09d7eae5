/* Drawing tokens from a model, with its keys and values kept from token to token. */
#ifndef GPT_SAMPLE_H
#define GPT_SAMPLE_H

#include <stdint.h>

#include "nanogpt/model.h"
#include "rax.h"

typedef struct gpt_sampler gpt_sampler;

/* Borrows the parameters until it is freed. Two programs are compiled at the first use, whatever the prompts' lengths. */
gpt_sampler *gpt_sampler_new(const gpt_model_config *config, rax_tree params);       /* NULL: rax_error() */
void gpt_sampler_free(gpt_sampler *sampler);                                         /* NULL is fine */

typedef struct {
    int max_new_tokens;
    double temperature;               /* 0: always the likeliest */
    int top_k;                        /* draw among so many of the likeliest; 0: among all */
    uint64_t seed;
    int n_ids;                        /* ids from here on are never drawn: rows of the embedding that have no token */
    int end_of_text;                  /* the id that ends a text; -1: none */
} gpt_sample_options;

/* Told each token; false ends the text. */
typedef bool gpt_sample_token(void *context, int32_t id);

/* Goes on from a prompt of at least one id. The result depends on the options, on `number`, which tells apart the texts drawn
 * with one seed, and on the prompt. The model sees at most block_size tokens: once they are full, it goes on with the
 * last half of them. */
bool gpt_sample(gpt_sampler *sampler, const gpt_sample_options *options, uint32_t number, const int32_t *prompt, int count,
                gpt_sample_token *token, void *context);

#endif
