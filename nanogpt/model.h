/* GPT-2 (Radford et al., "Language Models are Unsupervised Multitask Learners", 2019) over rax ops. Parameters are a tree with
 * Hugging Face's names, linear weights as [in, out]:
 *
 *     wte.weight [V,C]   wpe.weight [block_size,C]
 *     h.N.ln_1.weight [C]   h.N.attn.c_attn.weight [C,3C]   h.N.attn.c_proj.weight [C,C]
 *     h.N.ln_2.weight [C]   h.N.mlp.c_fc.weight [C,4C]      h.N.mlp.c_proj.weight [4C,C]
 *     ln_f.weight [C]
 *
 * each but the first two with a .bias where the model has biases. The output layer is wte.weight transposed.
 *
 * B batch, T tokens of context, N = B·T, C width, H heads, D = C / H, V vocabulary. */
#ifndef GPT_MODEL_H
#define GPT_MODEL_H

#include "nanogpt/config.h"
#include "rax.h"

/* What a trace needs to know of the configuration. */
typedef struct {
    int n_layer, n_head, n_embd, block_size, vocab_size;
    bool bias;
    double dropout;
    bool bf16;                        /* operands of matmuls and attention */
    int64_t seed;                     /* of dropout */
} gpt_model_config;
extern const rax_record_type gpt_model_record;
gpt_model_config gpt_model_of(const gpt_config *config);

/* All parameters, as zeros. RAX_NO_TREE where there is no memory for them. */
rax_tree gpt_params_new(const gpt_model_config *config);
int64_t gpt_count_elements(rax_tree tree);

/* -- inside a step -------------------------------------------------------------------------------------------------- */

/* The loss of each token: ids, targets i32[B,T]; f32[N]. dropout: where its random numbers come from; NULL for none. */
rax_tensor gpt_losses(rax_tree params, rax_tensor ids, rax_tensor targets, const gpt_model_config *config,
                      const rax_random *dropout);

/* Keys and values of the tokens so far: h.N.k and h.N.v, f32[1,H,S,D]. */
rax_tree gpt_cache_new(const gpt_model_config *config, int S);

/* Runs the model over ids i32[1,T], which stand at position, position + 1, ... (i32[]) behind what is in the cache, and
 * writes their keys and values into it. *next_cache is the cache after. Returns the logits after the count-th (i32[]) of
 * them: f32[V]. What is behind the first count may be anything: it is written over when its position comes. */
rax_tensor gpt_logits(rax_tree params, rax_tree cache, rax_tensor ids, rax_tensor position, rax_tensor count,
                      const gpt_model_config *config, rax_tree *next_cache);

#endif
