/* Sampling. One traced step runs T tokens behind those in the cache; it is compiled for two T, so that nothing depends on
 * the length of a prompt: blocks of tokens for the prompt, the last one filled up with zeros, and single tokens after it. */
#include "nanogpt/sample.h"

#include <math.h>
#include <string.h>

#include "nanogpt/random.h"

enum { MAX_BLOCK = 64 };              /* tokens of a prompt at a time: enough for the weights to be read once for many */

struct gpt_sampler {
    gpt_model_config config;
    rax_tree params, cache;
    rax_fn *prefill, *decode;
    int block;
    rax_tensor block_ids, one_id;     /* i32[1,block], i32[1,1] */
    rax_tensor logits;                /* f32[V] */
    float *scratch;                   /* V */
    int32_t *ids;                     /* the whole text so far */
    int from, to;                     /* ids[from] ... ids[to - 1] are in the cache */
};

static void logits_step(rax_args *in, rax_results *out)
{
    rax_tree next_cache;
    rax_tensor logits = gpt_logits(rax_arg_tree(in, 0), rax_arg_tree(in, 1), rax_arg_tensor(in, 2), rax_arg_tensor(in, 3),
                                   rax_arg_tensor(in, 4), rax_arg_record(in, 5), &next_cache);
    rax_return_tensor(out, 0, logits);
    rax_return_tree(out, 1, next_cache);
}

static const char signature[] = "params: tree, cache: tree, ids: i32[1,T], position: i32, count: i32, model_config: record";

gpt_sampler *gpt_sampler_new(const gpt_model_config *config, rax_tree params)
{
    gpt_sampler *s = rax_alloc(sizeof *s);
    const int block = config->block_size < MAX_BLOCK ? config->block_size : MAX_BLOCK;
    *s = (gpt_sampler){
        .config = *config, .params = params, .block = block,
        /* whole blocks, so that a block at the end of the context need not be moved to fit */
        .cache = gpt_cache_new(config, (config->block_size + block - 1) / block * block),
        .prefill = rax_function(logits_step, "prefill_step", signature),
        .decode = rax_function(logits_step, "decode_step", signature),
        .block_ids = rax_tensor_new(RAX_I32, RAX_SHAPE(1, block)), .one_id = rax_tensor_new(RAX_I32, RAX_SHAPE(1, 1)),
        .scratch = rax_alloc(sizeof(float) * (size_t)config->vocab_size),
    };
    if (rax_is_tree(s->cache) && s->prefill && s->decode && rax_is_tensor(s->block_ids) && rax_is_tensor(s->one_id))
        return s;
    gpt_sampler_free(s);
    return NULL;
}

void gpt_sampler_free(gpt_sampler *s)
{
    if (!s)
        return;
    rax_function_free(s->prefill);
    rax_function_free(s->decode);
    rax_tree_free(s->cache);
    rax_tensor_free(s->block_ids);
    rax_tensor_free(s->one_id);
    rax_tensor_free(s->logits);
    rax_free(s->scratch);
    rax_free(s->ids);
    rax_free(s);
}

/* -- the model's part ------------------------------------------------------------------------------------------------- */

/* Runs the next `count` ids, which fit into `ids`. */
static bool feed(gpt_sampler *s, rax_fn *step, rax_tensor ids, int count)
{
    int32_t *at = rax_overwrite(ids);
    if (!at)
        return false;
    memset(at, 0, sizeof *at * (size_t)rax_count(ids));
    memcpy(at, s->ids + s->to, sizeof *at * (size_t)count);
    rax_value args[] = { rax_pass_tree(s->params), rax_pass_tree(s->cache), rax_pass_tensor(ids), rax_pass_number(s->to - s->from),
                         rax_pass_number(count), rax_pass_record(&s->config, &gpt_model_record) };
    rax_into results[] = { rax_into_tensor(&s->logits), rax_into_tree(&s->cache) };
    if (!rax_call(step, args, results))
        return false;
    s->to += count;
    return true;
}

/* Brings the cache up to ids[0 .. n) and leaves the logits of what comes next. */
static bool catch_up(gpt_sampler *s, int n)
{
    const int limit = s->config.block_size;
    if (n - s->from > limit)          /* full: the last half stays, or as much of a prompt as there is room for */
        s->from = s->to = s->to > s->from ? n - (limit + 1) / 2 : n - limit;
    while (s->to < n) {
        int left = n - s->to, position = s->to - s->from;
        bool whole_block = position == 0 || (left > 1 && position % s->block == 0);
        int count = !whole_block ? 1 : left < s->block ? left : s->block;
        if (!feed(s, whole_block ? s->prefill : s->decode, whole_block ? s->block_ids : s->one_id, count))
            return false;
    }
    return true;
}

/* -- the draw --------------------------------------------------------------------------------------------------------- */

/* The k-th greatest of n values, which are rearranged (Hoare's selection, 1961). 1 <= k <= n. */
static float kth_greatest(float *value, int n, int k)
{
    int low = 0, high = n - 1, wanted = k - 1;
    while (low < high) {
        float pivot = value[low + (high - low) / 2];
        int i = low, j = high;
        while (i <= j) {
            while (value[i] > pivot)
                i++;
            while (value[j] < pivot)
                j--;
            if (i <= j) {
                float swapped = value[i];
                value[i++] = value[j];
                value[j--] = swapped;
            }
        }
        if (wanted <= j)
            high = j;
        else if (wanted >= i)
            low = i;
        else
            break;
    }
    return value[wanted];
}

/* An id drawn from the first n logits by a uniform number; -1 where they are not all numbers. */
static int32_t draw(const float *logits, float *scratch, int n, const gpt_sample_options *options, double uniform)
{
    int best = 0;
    for (int i = 0; i < n; i++) {
        if (!isfinite(logits[i]))
            return -1;
        best = logits[i] > logits[best] ? i : best;
    }
    if (options->temperature == 0)
        return best;

    float least = -INFINITY;          /* what is below has no chance */
    if (options->top_k > 0 && options->top_k < n) {
        memcpy(scratch, logits, sizeof *scratch * (size_t)n);
        least = kth_greatest(scratch, n, options->top_k);
    }
    double sum = 0, below = 0;
    for (int i = 0; i < n; i++)
        sum += logits[i] < least ? 0 : exp((logits[i] - logits[best]) / options->temperature);
    for (int i = 0; i < n; i++) {
        below += logits[i] < least ? 0 : exp((logits[i] - logits[best]) / options->temperature);
        if (uniform * sum < below)
            return i;
    }
    return best;                      /* rounding kept the sum from being reached */
}

bool gpt_sample(gpt_sampler *s, const gpt_sample_options *options, uint32_t number, const int32_t *prompt, int count,
                gpt_sample_token *token, void *context)
{
    int n_ids = options->n_ids < s->config.vocab_size ? options->n_ids : s->config.vocab_size;
    rax_free(s->ids);
    s->ids = rax_alloc(sizeof *s->ids * ((size_t)count + (size_t)options->max_new_tokens));
    memcpy(s->ids, prompt, sizeof *s->ids * (size_t)count);
    s->from = s->to = 0;

    /* A token is given out when the step after it has run: what is said while that is compiled does not stand in the middle of the text. */
    int n = count, end = count + options->max_new_tokens;
    for (; n < end; n++) {
        if (!catch_up(s, n))
            return false;
        if (n > count && !token(context, s->ids[n - 1]))
            return true;
        double uniform = gpt_uniform(options->seed, GPT_SITE_SAMPLING, number, (uint32_t)(n - count));
        const float *logits = rax_read(s->logits);
        if (!logits)
            return false;
        int32_t id = draw(logits, s->scratch, n_ids, options, uniform);
        if (id < 0)
            return rax_fail(RAX_FAILURE, "the model's logits are not all finite: its weights are of no use");
        if (id == options->end_of_text)
            return true;
        s->ids[n] = id;
    }
    if (n > count)
        token(context, s->ids[n - 1]);
    return true;
}
