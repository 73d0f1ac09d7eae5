/* Weights in and out. */
#include "nanogpt/weights.h"

#include <cjson/cJSON.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

#include "nanogpt/checkpoint_files.h"
#include "nanogpt/files.h"
#include "nanogpt/random.h"

const char gpt_weights_prefix[] = "transformer.";

static bool ends_with(const char *text, const char *end)
{
    size_t len = strlen(text), tail = strlen(end);
    return len >= tail && strcmp(text + len - tail, end) == 0;
}

/* -- from scratch --------------------------------------------------------------------------------------------------- */

bool gpt_weights_init(rax_tree params, const gpt_model_config *config)
{
    for (int i = 0; i < rax_tree_size(params); i++) {
        const char *name = rax_leaf_name(params, i);
        rax_tensor w = rax_leaf(params, i);
        float *element = rax_overwrite(w);
        if (!element)
            return false;
        if (rax_rank(w) >= 2) {
            double deviation = ends_with(name, ".c_proj.weight") ? 0.02 / sqrt(2.0 * config->n_layer) : 0.02;
            gpt_normal((uint64_t)config->seed, GPT_SITE_WEIGHTS + (uint32_t)i, deviation, rax_count(w), element);
        } else {
            for (int64_t j = 0; j < rax_count(w); j++)
                element[j] = ends_with(name, ".bias") ? 0 : 1;
        }
    }
    return true;
}

/* -- from files ----------------------------------------------------------------------------------------------------- */

/* The place of the first element that is no number or infinite; count: there is none. Bits are compared, which takes vector code. */
static int64_t first_not_finite(const float *x, int64_t count)
{
    enum { BLOCK = 4096 };
    for (int64_t begin = 0; begin < count; begin += BLOCK) {
        int64_t end = begin + BLOCK < count ? begin + BLOCK : count;
        uint32_t most = 0, bits;
        for (int64_t i = begin; i < end; i++) {
            memcpy(&bits, &x[i], sizeof bits);
            bits &= 0x7fffffff;
            most = bits > most ? bits : most;
        }
        for (int64_t i = begin; most >= 0x7f800000 && i < end; i++)
            if (!isfinite(x[i]))
                return i;
    }
    return count;
}

/* A run writes no weights that are not finite: a file that has some is damaged, and a run from it would end at its first loss. */
static bool read_leaf(rax_tree tree, int leaf, const gpt_safetensors *file, const char *prefix)
{
    rax_tensor tensor = rax_leaf(tree, leaf);
    rax_shape shape = rax_shape_of(tensor);
    char *name = gpt_format("%s%s", prefix, rax_leaf_name(tree, leaf));
    float *element = rax_overwrite(tensor);
    bool read = element && gpt_safetensors_read_f32(file, name, shape.rank, shape.dim, element);
    int64_t count = rax_count(tensor), wrong = read ? first_not_finite(element, count) : count;
    if (wrong < count)
        read = rax_fail(RAX_MISTAKE, "%s: %s: element %" PRId64 " is %g", gpt_safetensors_path(file), name, wrong, fabs(element[wrong]));
    rax_free(name);
    return read;
}

bool gpt_tree_read(rax_tree tree, const gpt_safetensors *file)
{
    for (int i = 0; i < rax_tree_size(tree); i++)
        if (!read_leaf(tree, i, file, ""))
            return false;
    return true;
}

/* lm_head.weight is to be what the model computes with: wte.weight, bit for bit. */
static bool check_head(rax_tree params, const gpt_safetensors *file, const gpt_array *head)
{
    rax_tensor wte = rax_get(params, "wte.weight");
    rax_shape shape = rax_shape_of(wte);
    size_t bytes = (size_t)rax_count(wte) * sizeof(float);
    float *elements = rax_try_alloc(bytes);
    if (!elements)
        return rax_fail(RAX_FAILURE, "%s: %s: no memory for its %zu bytes", gpt_safetensors_path(file), head->name, bytes);
    bool same = gpt_safetensors_read_f32(file, head->name, shape.rank, shape.dim, elements);
    if (same && memcmp(elements, rax_read(wte), bytes) != 0)
        same = rax_fail(RAX_MISTAKE, "%s: %s: differs from wte.weight; this model's output layer is wte.weight itself",
                        gpt_safetensors_path(file), head->name);
    rax_free(elements);
    return same;
}

bool gpt_weights_read(rax_tree params, const gpt_safetensors *file)
{
    const char *path = gpt_safetensors_path(file);
    const char *prefix = gpt_safetensors_find(file, "transformer.wte.weight") ? gpt_weights_prefix : "";

    for (int i = 0; i < rax_tree_size(params); i++)
        if (!read_leaf(params, i, file, prefix))
            return false;
    for (int i = 0; i < gpt_safetensors_count(file); i++) {
        const gpt_array *array = gpt_safetensors_at(file, i);
        bool prefixed = strncmp(array->name, prefix, strlen(prefix)) == 0;
        if ((prefixed && rax_has(params, "%s", array->name + strlen(prefix))) || ends_with(array->name, ".attn.bias") ||
            ends_with(array->name, ".attn.masked_bias"))
            continue;
        if (strcmp(array->name, "lm_head.weight") == 0) {
            if (!check_head(params, file, array))
                return false;
            continue;
        }
        bool a_bias = ends_with(array->name, ".bias") && !rax_has(params, "ln_f.bias");
        return rax_fail(RAX_MISTAKE, "%s: %s: this model has no such tensor%s", path, array->name,
                        a_bias ? "; with bias set to true it would" : "");
    }
    return true;
}

/* What a folder's config.json says is to be what the run says: the heads cannot be seen in the shapes of the weights. */
static bool check_description(const gpt_config *config, const char *path)
{
    const struct { const char *key, *ours; int value; } sizes[] = {
        { "vocab_size", "vocab_size", config->vocab_size }, { "n_positions", "block_size", config->block_size },
        { "n_embd", "n_embd", config->n_embd }, { "n_layer", "n_layer", config->n_layer }, { "n_head", "n_head", config->n_head },
    };
    cJSON *json = gpt_json_read(path);
    bool fits = json != NULL;
    for (size_t i = 0; fits && i < sizeof sizes / sizeof sizes[0]; i++) {
        const cJSON *found = cJSON_GetObjectItemCaseSensitive(json, sizes[i].key);
        if (cJSON_IsNumber(found) && found->valuedouble != sizes[i].value)
            fits = rax_fail(RAX_MISTAKE, "%s: %s: the weights were made with %g, the configuration says %s = %d", path,
                            sizes[i].key, found->valuedouble, sizes[i].ours, sizes[i].value);
    }
    const cJSON *activation = cJSON_GetObjectItemCaseSensitive(json, "activation_function");
    const cJSON *epsilon = cJSON_GetObjectItemCaseSensitive(json, "layer_norm_epsilon");
    if (fits && cJSON_IsString(activation) && strcmp(activation->valuestring, "gelu_new") != 0 &&
        strcmp(activation->valuestring, "gelu_pytorch_tanh") != 0)
        fits = rax_fail(RAX_MISTAKE, "%s: activation_function: expected \"gelu_new\", got \"%.40s\"", path,
                        activation->valuestring);
    if (fits && cJSON_IsNumber(epsilon) && epsilon->valuedouble != 1e-5)
        fits = rax_fail(RAX_MISTAKE, "%s: layer_norm_epsilon: expected 1e-05, got %g", path, epsilon->valuedouble);
    cJSON_Delete(json);
    return fits;
}

static bool exists_in(const char *folder, const char *name)
{
    char *path = gpt_path_join(folder, name);
    bool exists = access(path, F_OK) == 0;
    rax_free(path);
    return exists;
}

static bool read_checkpoint(rax_tree params, const gpt_config *config, const char *folder)
{
    gpt_checkpoint *checkpoint = gpt_checkpoint_open(folder, false);
    bool read = checkpoint && gpt_config_same_model(config, &checkpoint->config, checkpoint->folder) &&
                gpt_weights_read(params, checkpoint->model);
    gpt_checkpoint_close(checkpoint);
    return read;
}

bool gpt_weights_read_folder(rax_tree params, const gpt_config *config, const char *folder)
{
    if (exists_in(folder, "state.json") || exists_in(folder, "latest"))
        return read_checkpoint(params, config, folder);

    char *path = gpt_path_join(folder, "model.safetensors"), *description = gpt_path_join(folder, "config.json");
    gpt_safetensors *file = gpt_safetensors_open(path);
    bool read = file && (!exists_in(folder, "config.json") || check_description(config, description)) &&
                gpt_weights_read(params, file);
    gpt_safetensors_close(file);
    rax_free(description);
    rax_free(path);
    return read;
}

/* -- into files ----------------------------------------------------------------------------------------------------- */

bool gpt_arrays_of(rax_tree tree, const char *prefix, gpt_arrays *into)
{
    const int n = rax_tree_size(tree);
    gpt_arrays arrays = { n, rax_alloc(sizeof(gpt_array) * (size_t)n), rax_alloc(sizeof(char *) * (size_t)n),
                          rax_alloc(sizeof(rax_shape) * (size_t)n) };
    bool whole = true;
    for (int i = 0; i < n; i++) {
        const rax_shape *shape = &arrays.shape[i];
        arrays.name[i] = gpt_format("%s%s", prefix, rax_leaf_name(tree, i));
        arrays.shape[i] = rax_shape_of(rax_leaf(tree, i));
        arrays.array[i] = (gpt_array){ arrays.name[i], GPT_F32, shape->rank, shape->dim, rax_read(rax_leaf(tree, i)) };
        whole &= arrays.array[i].data != NULL;
    }
    *into = arrays;
    return whole;
}

void gpt_arrays_free(gpt_arrays *arrays)
{
    for (int i = 0; i < arrays->count; i++)
        rax_free(arrays->name[i]);
    rax_free(arrays->name);
    rax_free(arrays->shape);
    rax_free(arrays->array);
    *arrays = (gpt_arrays){0};
}
