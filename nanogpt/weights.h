/* Weights from scratch, from files, and into files. Files are in the Hugging Face GPT-2 layout: names as in model.h, with
 * "transformer." before them (GPT2LMHeadModel) or without (the files of the GPT-2 release), and no lm_head.weight, which is
 * wte.weight. They are written with it. */
#ifndef GPT_WEIGHTS_H
#define GPT_WEIGHTS_H

#include "nanogpt/config.h"
#include "nanogpt/model.h"
#include "nanogpt/safetensors.h"
#include "rax.h"

extern const char gpt_weights_prefix[];                   /* "transformer." */

/* N(0, 0.02); the two projections back into the residual stream N(0, 0.02/√(2·n_layer)); biases 0; LayerNorms 1. False: rax_error(). */
bool gpt_weights_init(rax_tree params, const gpt_model_config *config);

/* Fills params from a file. Errors name the file and the tensor: missing, extra, or misshapen. lm_head.weight may be there
 * if it equals wte.weight; attn.bias and attn.masked_bias, which are masks, are ignored. */
bool gpt_weights_read(rax_tree params, const gpt_safetensors *file);

/* Fills params from a folder: model.safetensors, checked against config.json or state.json where one is beside it; or the
 * latest checkpoint of an OUT_DIR. */
bool gpt_weights_read_folder(rax_tree params, const gpt_config *config, const char *folder);

/* Fills a tree from the arrays of its names, exactly. */
bool gpt_tree_read(rax_tree tree, const gpt_safetensors *file);

/* A tree of f32 as arrays for gpt_safetensors_write, named PREFIX and the leaf's name; their data is the tree's. To be
 * freed in any case; false: a device does not give its elements. */
typedef struct { int count; gpt_array *array; char **name; rax_shape *shape; } gpt_arrays;
bool gpt_arrays_of(rax_tree tree, const char *prefix, gpt_arrays *into);
void gpt_arrays_free(gpt_arrays *arrays);

#endif
