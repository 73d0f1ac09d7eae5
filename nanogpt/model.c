/* The model. One function a layer of the paper's figure; x is the residual stream, f32[N,C]. Activations have two axes
 * wherever heads do not matter, so that every product of the model is one of two matrices.
 *
 * Of the arguments of a call at most one makes ops: C leaves open which comes first, and a trace is to be the same by every compiler. */
#include "nanogpt/model.h"

#include <math.h>

static const rax_field model_fields[] = {
    RAX_FIELD(gpt_model_config, n_layer, INT),   RAX_FIELD(gpt_model_config, n_head, INT),
    RAX_FIELD(gpt_model_config, n_embd, INT),    RAX_FIELD(gpt_model_config, block_size, INT),
    RAX_FIELD(gpt_model_config, vocab_size, INT), RAX_FIELD(gpt_model_config, bias, BOOL),
    RAX_FIELD(gpt_model_config, dropout, DOUBLE), RAX_FIELD(gpt_model_config, bf16, BOOL),
    RAX_FIELD(gpt_model_config, seed, INT64),
};
const rax_record_type gpt_model_record = RAX_RECORD(gpt_model_config, model_fields);

gpt_model_config gpt_model_of(const gpt_config *config)
{
    return (gpt_model_config){
        .n_layer = config->n_layer, .n_head = config->n_head, .n_embd = config->n_embd, .block_size = config->block_size,
        .vocab_size = config->vocab_size, .bias = config->bias, .dropout = config->dropout,
        .bf16 = config->dtype == GPT_DTYPE_BF16, .seed = config->seed,
    };
}

/* -- parameters ----------------------------------------------------------------------------------------------------- */

/* Adds NAME.weight of this shape, and NAME.bias, as long as its last axis, where the model has biases. */
static bool add_layer(rax_tree params, const char *name, rax_shape weight, bool bias)
{
    if (!rax_tree_add(params, rax_tensor_new(RAX_F32, weight), "%s.weight", name))
        return false;
    return !bias || rax_tree_add(params, rax_tensor_new(RAX_F32, RAX_SHAPE(weight.dim[weight.rank - 1])), "%s.bias", name);
}

rax_tree gpt_params_new(const gpt_model_config *config)
{
    const int C = config->n_embd;
    const struct { const char *name; rax_shape weight; } layers[] = {
        { "ln_1", RAX_SHAPE(C) }, { "attn.c_attn", RAX_SHAPE(C, 3 * C) }, { "attn.c_proj", RAX_SHAPE(C, C) },
        { "ln_2", RAX_SHAPE(C) }, { "mlp.c_fc", RAX_SHAPE(C, 4 * C) },    { "mlp.c_proj", RAX_SHAPE(4 * C, C) },
    };
    enum { LAYERS = sizeof layers / sizeof layers[0] };
    char name[64];

    rax_tree params = rax_tree_new();
    bool added = add_layer(params, "wte", RAX_SHAPE(config->vocab_size, C), false) &&
                 add_layer(params, "wpe", RAX_SHAPE(config->block_size, C), false);
    for (int i = 0; added && i < config->n_layer * LAYERS; i++) {
        snprintf(name, sizeof name, "h.%d.%s", i / LAYERS, layers[i % LAYERS].name);
        added = add_layer(params, name, layers[i % LAYERS].weight, config->bias);
    }
    if (added && add_layer(params, "ln_f", RAX_SHAPE(C), config->bias))
        return params;
    rax_tree_free(params);
    return RAX_NO_TREE;
}

int64_t gpt_count_elements(rax_tree tree)
{
    int64_t count = 0;
    for (int i = 0; i < rax_tree_size(tree); i++)
        count += rax_count(rax_leaf(tree, i));
    return count;
}

/* -- layers --------------------------------------------------------------------------------------------------------- */

/* One run of the model over B rows of T tokens. */
typedef struct {
    const gpt_model_config *config;
    rax_tree params;
    int64_t B, T;
    const rax_random *dropout;        /* NULL: none */
    rax_tree cache, next_cache;       /* sampling: keys and values so far, and after; RAX_NO_TREE in training */
    rax_tensor position;              /* sampling: of the first token, i32[] */
} run;

static rax_tensor dropout(const run *r, rax_tensor x)
{
    return r->dropout ? rax_dropout(*r->dropout, x, r->config->dropout) : x;
}

/* An operand of a product, in the type that products are computed in. */
static rax_tensor operand(const run *r, rax_tensor x)
{
    return r->config->bf16 ? rax_cast(x, RAX_BF16) : x;
}

static rax_tensor product(const run *r, rax_tensor a, rax_tensor b)
{
    a = operand(r, a);
    b = operand(r, b);
    return r->config->bf16 ? rax_matmul_f32(a, b) : rax_matmul(a, b);
}

static rax_tensor bias(const run *r, const char *layer)
{
    return r->config->bias ? rax_get(r->params, "%s.bias", layer) : RAX_NO_TENSOR;
}

static rax_tensor linear(const run *r, rax_tensor x, const char *layer)
{
    rax_tensor y = product(r, x, rax_get(r->params, "%s.weight", layer));
    return r->config->bias ? rax_add(y, bias(r, layer)) : y;
}

static rax_tensor layer_norm(const run *r, rax_tensor x, const char *layer)
{
    return rax_layer_norm(x, rax_get(r->params, "%s.weight", layer), bias(r, layer), 1e-5);
}

/* Queries, keys or values, part 0, 1 or 2 of qkv [N,3C], by head: [B,H,T,D]. */
static rax_tensor heads(const run *r, rax_tensor qkv, int part)
{
    const int C = r->config->n_embd, H = r->config->n_head;
    rax_tensor x = rax_slice(qkv, 1, part * C, C);
    return rax_transpose(rax_reshape(x, RAX_SHAPE(r->B, r->T, H, C / H)), 0, 2, 1, 3);
}

/* Attention among the T tokens: [B,H,T,D] each. */
static rax_tensor attend(const run *r, rax_tensor q, rax_tensor k, rax_tensor v)
{
    rax_attention_options options = { .causal = true };
    if (r->dropout) {
        options.dropout = r->config->dropout;
        options.random = *r->dropout;
    }
    q = operand(r, q);
    k = operand(r, k);
    v = operand(r, v);
    rax_tensor y = rax_attention(q, k, v, options);
    return r->config->bf16 ? rax_cast(y, RAX_F32) : y;
}

/* Attention of T tokens, the first at `position`, to those of the cache [1,H,S,D] up to themselves. How many those are is known
 * only when the step runs, so all S are looked at and the rest is masked. */
static rax_tensor attend_to_cache(const run *r, int block, rax_tensor q, rax_tensor k, rax_tensor v)
{
    rax_tensor keys = rax_update_slice(rax_get(r->cache, "h.%d.k", block), k, 2, r->position);
    rax_tensor values = rax_update_slice(rax_get(r->cache, "h.%d.v", block), v, 2, r->position);
    rax_set_leaf(r->next_cache, 2 * block, keys);
    rax_set_leaf(r->next_cache, 2 * block + 1, values);

    rax_shape square = RAX_SHAPE(r->T, rax_dim(keys, 2));
    rax_tensor row = rax_add(rax_iota(RAX_I32, square, 0), r->position);
    rax_tensor visible = rax_le(rax_iota(RAX_I32, square, 1), row);
    rax_tensor scores = rax_scale(rax_matmul(q, rax_swap(keys, 2, 3)), 1 / sqrt((double)rax_dim(q, 3)));
    rax_tensor masked = rax_select(visible, scores, rax_constant(RAX_F32, RAX_SCALAR, -INFINITY));
    return rax_matmul(rax_softmax(masked, -1), values);
}

static rax_tensor attention(const run *r, int block, rax_tensor x)
{
    char name[64];
    snprintf(name, sizeof name, "h.%d.attn.c_attn", block);
    rax_tensor qkv = linear(r, x, name);
    rax_tensor q = heads(r, qkv, 0), k = heads(r, qkv, 1), v = heads(r, qkv, 2);
    rax_tensor y = rax_is_tree(r->cache) ? attend_to_cache(r, block, q, k, v) : attend(r, q, k, v);
    y = rax_reshape(rax_transpose(y, 0, 2, 1, 3), RAX_SHAPE(r->B * r->T, r->config->n_embd));
    snprintf(name, sizeof name, "h.%d.attn.c_proj", block);
    return dropout(r, linear(r, y, name));
}

static rax_tensor mlp(const run *r, int block, rax_tensor x)
{
    char name[64];
    snprintf(name, sizeof name, "h.%d.mlp.c_fc", block);
    x = rax_gelu(linear(r, x, name));
    snprintf(name, sizeof name, "h.%d.mlp.c_proj", block);
    return dropout(r, linear(r, x, name));
}

/* Embeddings, blocks and the last norm: ids i32[B,T], positions f32[T,C]; f32[N,C]. */
static rax_tensor transformer(const run *r, rax_tensor ids, rax_tensor positions)
{
    char name[64];
    rax_tensor x = rax_add(rax_gather(rax_get(r->params, "wte.weight"), ids, 0), positions);
    x = dropout(r, rax_reshape(x, RAX_SHAPE(r->B * r->T, r->config->n_embd)));
    for (int i = 0; i < r->config->n_layer; i++) {
        snprintf(name, sizeof name, "h.%d.ln_1", i);
        x = rax_add(x, attention(r, i, layer_norm(r, x, name)));
        snprintf(name, sizeof name, "h.%d.ln_2", i);
        x = rax_add(x, mlp(r, i, layer_norm(r, x, name)));
    }
    return layer_norm(r, x, "ln_f");
}

/* -- whole model ---------------------------------------------------------------------------------------------------- */

rax_tensor gpt_losses(rax_tree params, rax_tensor ids, rax_tensor targets, const gpt_model_config *config,
                      const rax_random *dropout)
{
    run r = { .config = config, .params = params, .B = rax_dim(ids, 0), .T = rax_dim(ids, 1),
              .dropout = config->dropout > 0 ? dropout : NULL };
    rax_tensor x = transformer(&r, ids, rax_slice(rax_get(params, "wpe.weight"), 0, 0, r.T));
    rax_tensor rows = operand(&r, x), wte = operand(&r, rax_get(params, "wte.weight"));
    return rax_linear_cross_entropy(rows, wte, rax_reshape(targets, RAX_SHAPE(r.B * r.T)));
}

rax_tree gpt_cache_new(const gpt_model_config *config, int S)
{
    rax_shape shape = RAX_SHAPE(1, config->n_head, S, config->n_embd / config->n_head);
    rax_tree cache = rax_tree_new();
    bool added = true;
    for (int i = 0; added && i < config->n_layer; i++)
        added = rax_tree_add(cache, rax_tensor_new(RAX_F32, shape), "h.%d.k", i) &&
                rax_tree_add(cache, rax_tensor_new(RAX_F32, shape), "h.%d.v", i);
    if (added)
        return cache;
    rax_tree_free(cache);
    return RAX_NO_TREE;
}

rax_tensor gpt_logits(rax_tree params, rax_tree cache, rax_tensor ids, rax_tensor position, rax_tensor count,
                      const gpt_model_config *config, rax_tree *next_cache)
{
    *next_cache = rax_tree_like(cache);
    run r = { .config = config, .params = params, .B = 1, .T = rax_dim(ids, 1), .cache = cache, .next_cache = *next_cache,
              .position = position };
    /* Tokens behind the count-th may stand beyond the last position: gather gives them the last one's embedding. */
    rax_tensor positions = rax_add(rax_iota(RAX_I32, RAX_SHAPE(r.T), 0), position);
    rax_tensor x = transformer(&r, ids, rax_gather(rax_get(params, "wpe.weight"), positions, 0));
    rax_tensor last = rax_dynamic_slice(x, 0, rax_sub(count, rax_constant(RAX_I32, RAX_SCALAR, 1)), 1);
    rax_tensor logits = product(&r, last, rax_swap(rax_get(params, "wte.weight"), 0, 1));
    return rax_reshape(logits, RAX_SHAPE(config->vocab_size));
}
