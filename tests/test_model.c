/* The parts of the trainer by themselves: initial weights, the schedule, weight files, evaluation, dropout, bf16, sampling. What a
 * whole run computes is held to PyTorch by test_golden.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "nanogpt/files.h"
#include "nanogpt/random.h"
#include "nanogpt/sample.h"
#include "nanogpt/train_step.h"
#include "nanogpt/weights.h"

#define NEAR(got, wanted, tolerance) \
    do { \
        double got_ = (got), wanted_ = (wanted), tolerance_ = (tolerance); \
        if (!(fabs(got_ - wanted_) <= tolerance_)) \
            fail_msg("%s:%d: expected %.9g within %.3g, got %.9g", __FILE__, __LINE__, wanted_, tolerance_, got_); \
    } while (0)

#define CALL(fn, args, results) \
    do { \
        if (!rax_call(fn, args, results)) \
            fail_msg("%s:%d: %s", __FILE__, __LINE__, rax_error()); \
    } while (0)

static const gpt_model_config small = { .n_layer = 2, .n_head = 3, .n_embd = 24, .block_size = 10, .vocab_size = 50, .bias = true, .seed = 7 };
static const gpt_optimizer_config adamw = { .learning_rate = 1e-2, .min_lr = 1e-3, .warmup_iters = 2, .lr_decay_iters = 8, .weight_decay = 0.1,
                                            .beta1 = 0.9, .beta2 = 0.99, .grad_clip = 1 };

static rax_tree random_params(const gpt_model_config *config)
{
    rax_tree params = gpt_params_new(config);
    assert_true(rax_is_tree(params));
    gpt_weights_init(params, config);
    return params;
}

/* -- random numbers and initial weights --------------------------------------------------------------------------------- */

static void test_philox(void **state)
{
    (void)state;
    uint32_t out[4];
    rax_philox_words(0, (uint32_t[]){ 0, 0, 0, 0 }, out);
    const uint32_t wanted[] = { 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8 };
    assert_memory_equal(out, wanted, sizeof out);
    rax_philox_words(UINT64_MAX, (uint32_t[]){ ~0u, ~0u, ~0u, ~0u }, out);             /* Random123's kat_vectors */
    const uint32_t ones[] = { 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd };
    assert_memory_equal(out, ones, sizeof out);
    rax_philox_words(0x299f31d0a4093822, (uint32_t[]){ 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344 }, out);
    const uint32_t of_pi[] = { 0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1 };
    assert_memory_equal(out, of_pi, sizeof out);
}

/* Box and Muller's formula by long doubles: element i from words i mod 4 and its neighbour of counter i / 4. */
static float normal_by_libm(uint64_t seed, uint32_t site, double deviation, int64_t i)
{
    uint32_t word[4];
    rax_philox_words(seed, (uint32_t[]){ (uint32_t)(i / 4), (uint32_t)((uint64_t)i / 4 >> 32), site, 0 }, word);
    const uint32_t *pair = &word[i % 4 / 2 * 2];
    long double angle = pair[1] * (2 * M_PI * 0x1p-32), radius = deviation * sqrtl(-2 * logl((pair[0] + 1.0L) * 0x1p-32L));
    return (float)(radius * (i % 2 ? sinl(angle) : cosl(angle)));
}

/* A double is rounded to a float: the two may differ where it lies within its own error of the middle between two floats,
 * once in some 10^8 numbers, and by one float then. */
static void test_normal(void **state)
{
    (void)state;
    const int64_t counts[] = { 0, 1, 2, 3, 5, 255, 256, 257, 4099, 1000003 };      /* threads share the last */
    float *x = rax_alloc(sizeof *x * 1000004);
    for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
        uint32_t site = GPT_SITE_WEIGHTS + (uint32_t)c;
        int64_t other = 0;
        x[counts[c]] = 77;
        gpt_normal(0x123456789abcdef, site, 0.02, counts[c], x);
        assert_true(x[counts[c]] == 77);
        for (int64_t i = 0; i < counts[c]; i++) {
            float wanted = normal_by_libm(0x123456789abcdef, site, 0.02, i);
            other += x[i] != wanted;
            if (x[i] != wanted && x[i] != nextafterf(wanted, x[i]))
                fail_msg("count %lld, element %lld: expected %a, got %a", (long long)counts[c], (long long)i, wanted, x[i]);
        }
        assert_true(other <= 1);
    }
    rax_free(x);
}

static void check_normal(rax_tree params, const char *name, double deviation)
{
    rax_tensor w = rax_get(params, "%s", name);
    const float *x = rax_data(w);
    double sum = 0, squares = 0, n = (double)rax_count(w);
    for (int64_t i = 0; i < rax_count(w); i++)
        sum += x[i], squares += (double)x[i] * x[i];
    NEAR(sum / n, 0, 5 * deviation / sqrt(n));
    NEAR(sqrt(squares / n), deviation, 5 * deviation / sqrt(2 * n));
}

static void test_initial_weights(void **state)
{
    (void)state;
    gpt_model_config config = small;
    config.n_embd = 96;
    config.vocab_size = 1000;
    rax_tree params = random_params(&config);
    check_normal(params, "wte.weight", 0.02);
    check_normal(params, "wpe.weight", 0.02);
    check_normal(params, "h.1.mlp.c_fc.weight", 0.02);
    check_normal(params, "h.0.attn.c_proj.weight", 0.02 / 2);                    /* √(2·2) */
    check_normal(params, "h.1.mlp.c_proj.weight", 0.02 / 2);
    NEAR(rax_item(rax_get(params, "h.0.ln_2.weight"), 95), 1, 0);
    NEAR(rax_item(rax_get(params, "h.0.ln_2.bias"), 95), 0, 0);
    NEAR(rax_item(rax_get(params, "h.0.attn.c_attn.bias"), 287), 0, 0);
    assert_int_equal(gpt_count_elements(params), 1000 * 96 + 10 * 96 + 2 * (12 * 96 * 96 + 13 * 96) + 2 * 96);

    rax_tree again = random_params(&config);
    config.seed = 8;
    rax_tree other = random_params(&config);
    size_t bytes = sizeof(float) * 96 * 96;
    assert_memory_equal(rax_data(rax_get(params, "h.1.attn.c_proj.weight")), rax_data(rax_get(again, "h.1.attn.c_proj.weight")), bytes);
    assert_memory_not_equal(rax_data(rax_get(params, "h.1.attn.c_proj.weight")), rax_data(rax_get(other, "h.1.attn.c_proj.weight")), bytes);
    rax_tree_free(params);
    rax_tree_free(again);
    rax_tree_free(other);
}

/* -- the schedule ------------------------------------------------------------------------------------------------------- */

static void lr_step(rax_args *in, rax_results *out)
{
    rax_return_tensor(out, 0, gpt_learning_rate(rax_arg_tensor(in, 0), rax_arg_record(in, 1)));
}

static double lr_in_c(int it, const gpt_optimizer_config *o)
{
    if (it < o->warmup_iters)
        return o->learning_rate * it / o->warmup_iters;
    if (it >= o->lr_decay_iters)
        return o->min_lr;
    double share = (double)(it - o->warmup_iters) / (o->lr_decay_iters - o->warmup_iters);
    return o->min_lr + 0.5 * (1 + cos(M_PI * share)) * (o->learning_rate - o->min_lr);
}

static void test_learning_rate(void **state)
{
    (void)state;
    const int ends[][2] = { { 5, 40 }, { 0, 10 }, { 0, 0 }, { 7, 7 }, { 9, 3 }, { 2000, 600000 } };
    const int its[] = { 0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 39, 40, 41, 2000, 12345, 599999, 600001 };
    rax_fn *fn = rax_function(lr_step, "lr", "step: i32, optimizer: record");
    rax_tensor lr = RAX_NO_TENSOR;
    for (size_t e = 0; e < sizeof ends / sizeof ends[0]; e++)
        for (size_t i = 0; i < sizeof its / sizeof its[0]; i++) {
            gpt_optimizer_config o = { .learning_rate = 6e-4, .min_lr = 6e-5, .warmup_iters = ends[e][0], .lr_decay_iters = ends[e][1] };
            rax_value args[] = { rax_pass_number(its[i]), rax_pass_record(&o, &gpt_optimizer_record) };
            rax_into results[] = { rax_into_tensor(&lr) };
            CALL(fn, args, results);
            NEAR(rax_item(lr, 0), lr_in_c(its[i], &o), 1e-14);
        }
    rax_tensor_free(lr);
    rax_function_free(fn);
}

/* -- losses ------------------------------------------------------------------------------------------------------------- */

static double eval_loss(rax_fn *fn, const gpt_model_config *config, rax_tree params, int B, int T, const int32_t *x, const int32_t *y)
{
    rax_tensor xs = rax_tensor_from(RAX_I32, RAX_SHAPE(B, T), x), ys = rax_tensor_from(RAX_I32, RAX_SHAPE(B, T), y), loss = RAX_NO_TENSOR;
    rax_value args[] = { rax_pass_tree(params), rax_pass_tensor(xs), rax_pass_tensor(ys), rax_pass_record(config, &gpt_model_record) };
    rax_into results[] = { rax_into_tensor(&loss) };
    CALL(fn, args, results);
    double value = rax_item(loss, 0);
    rax_tensor_free(xs);
    rax_tensor_free(ys);
    rax_tensor_free(loss);
    return value;
}

static void test_evaluation(void **state)
{
    (void)state;
    enum { T = 10 };
    rax_fn *fn = gpt_eval_step_new();
    rax_tree params = random_params(&small);
    int32_t x[2 * T], y[2 * T];
    for (int i = 0; i < 2 * T; i++)
        x[i] = (i * 7) % 50, y[i] = (i * 7 + 7) % 50;
    double both = eval_loss(fn, &small, params, 2, T, x, y);
    NEAR(both, log(50), 0.1);

    double first = eval_loss(fn, &small, params, 1, T, x, y), second = eval_loss(fn, &small, params, 1, T, x + T, y + T);
    NEAR(both, (first + second) / 2, 1e-6);
    for (int i = T; i < 2 * T; i++)
        x[i] = 0, y[i] = -1;
    NEAR(eval_loss(fn, &small, params, 2, T, x, y), first, 1e-6);                 /* what has no target does not count */

    gpt_model_config dropping = small;
    dropping.dropout = 0.5;
    NEAR(eval_loss(fn, &dropping, params, 1, T, x, y), first, 0);                 /* nothing is dropped */
    rax_tree_free(params);
    rax_function_free(fn);
}

typedef struct { double loss, norm; } train_result;

/* One update of fresh weights at iteration `step`, with A rows of the same text. */
static train_result train_once(rax_fn *fn, const gpt_model_config *config, int A, int step)
{
    enum { T = 10, MOST = 4 };
    int32_t x[MOST * T], y[MOST * T];
    for (int i = 0; i < A * T; i++)
        x[i] = (i % T * 7) % 50, y[i] = (i % T * 7 + 7) % 50;
    rax_tree params = random_params(config), moments = gpt_moments_new(params);
    rax_tensor xs = rax_tensor_from(RAX_I32, RAX_SHAPE(A, 1, T), x), ys = rax_tensor_from(RAX_I32, RAX_SHAPE(A, 1, T), y);
    rax_tensor loss = RAX_NO_TENSOR, norm = RAX_NO_TENSOR, lr = RAX_NO_TENSOR;
    rax_value args[] = { rax_pass_tree(params), rax_pass_tree(moments), rax_pass_tensor(xs), rax_pass_tensor(ys), rax_pass_number(step),
                         rax_pass_record(config, &gpt_model_record), rax_pass_record(&adamw, &gpt_optimizer_record) };
    rax_into results[] = { rax_into_tree(&params), rax_into_tree(&moments), rax_into_tensor(&loss), rax_into_tensor(&norm), rax_into_tensor(&lr) };
    CALL(fn, args, results);
    train_result result = { rax_item(loss, 0), rax_item(norm, 0) };
    rax_tree_free(params);
    rax_tree_free(moments);
    rax_tensor all[] = { xs, ys, loss, norm, lr };
    for (int i = 0; i < 5; i++)
        rax_tensor_free(all[i]);
    return result;
}

static void test_dropout(void **state)
{
    (void)state;
    rax_fn *fn = gpt_train_step_new();
    gpt_model_config config = small;
    double without = train_once(fn, &config, 1, 3).loss;
    NEAR(train_once(fn, &config, 1, 4).loss, without, 0);

    config.dropout = 0.2;
    double at_3 = train_once(fn, &config, 1, 3).loss;
    NEAR(train_once(fn, &config, 1, 3).loss, at_3, 0);                            /* the iteration decides */
    assert_true(at_3 != train_once(fn, &config, 1, 4).loss && at_3 != without);
    NEAR(at_3, without, 0.5);
    config.seed++;
    assert_true(at_3 != train_once(fn, &config, 1, 3).loss);
    rax_function_free(fn);
}

/* Micro-batches of one text: without dropout as one of them, with dropout each with a mask of its own, which are those of the
 * iterations 2·A and on taken singly. */
static void test_accumulation(void **state)
{
    (void)state;
    rax_fn *fn = gpt_train_step_new();
    gpt_model_config config = small;
    train_result one = train_once(fn, &config, 1, 2), three = train_once(fn, &config, 3, 2);
    NEAR(three.loss, one.loss, 1e-6);
    NEAR(three.norm, one.norm, 1e-6 * one.norm);

    config.dropout = 0.2;
    double mean = 0;
    for (int j = 0; j < 3; j++)
        mean += train_once(fn, &config, 1, 2 * 3 + j).loss / 3;
    NEAR(train_once(fn, &config, 3, 2).loss, mean, 1e-6);
    rax_function_free(fn);
}

/* bf16 has 8 bits: operands are off by 2^-9 of themselves, sums of many of them by less. */
static void test_bf16(void **state)
{
    (void)state;
    rax_fn *fn = gpt_train_step_new();
    gpt_model_config config = small;
    train_result fp32 = train_once(fn, &config, 2, 0);
    config.bf16 = true;
    train_result bf16 = train_once(fn, &config, 2, 0);
    assert_true(bf16.loss != fp32.loss);
    NEAR(bf16.loss, fp32.loss, 2e-3);
    NEAR(bf16.norm, fp32.norm, 1e-2 * fp32.norm);
    rax_function_free(fn);
}

/* -- weight files --------------------------------------------------------------------------------------------------------- */

typedef struct { char folder[32]; gpt_array array[64]; int count; rax_tree params; gpt_arrays own; } weight_file;

/* The arrays of a model's file, to be changed before they are written. */
static weight_file weight_file_new(const gpt_model_config *config, const char *prefix)
{
    weight_file file = { .folder = "/tmp/rax-model-XXXXXX", .params = random_params(config) };
    assert_non_null(mkdtemp(file.folder));
    assert_true(gpt_arrays_of(file.params, prefix, &file.own));
    memcpy(file.array, file.own.array, sizeof *file.array * (size_t)file.own.count);
    file.count = file.own.count;
    return file;
}

static void weight_file_free(weight_file *file)
{
    gpt_arrays_free(&file->own);
    rax_tree_free(file->params);
    gpt_folder_remove(file->folder);
}

static void weight_file_add(weight_file *file, const char *name, int rank, const int64_t *shape, const void *data)
{
    file->array[file->count++] = (gpt_array){ name, GPT_F32, rank, shape, data };
}

static void weight_file_write(const weight_file *file)
{
    char *path = gpt_path_join(file->folder, "model.safetensors");
    if (!gpt_safetensors_write(path, file->array, file->count, NULL))
        fail_msg("%s", rax_error());
    rax_free(path);
}

/* Writes the file, reads it into a model of this configuration, and compares. error: what rax_error() is to have in it; NULL: none. */
static void check_reading(const weight_file *file, const gpt_config *config, const char *error)
{
    gpt_model_config model = gpt_model_of(config);
    rax_tree params = gpt_params_new(&model);
    weight_file_write(file);
    bool read = gpt_weights_read_folder(params, config, file->folder);
    if (error && (read || !strstr(rax_error(), error)))
        fail_msg("expected an error with '%s', got '%s'", error, read ? "none" : rax_error());
    if (!error && !read)
        fail_msg("%s", rax_error());
    for (int i = 0; read && i < rax_tree_size(params); i++)
        assert_memory_equal(rax_data(rax_leaf(params, i)), rax_data(rax_leaf(file->params, i)), sizeof(float) * (size_t)rax_count(rax_leaf(params, i)));
    rax_tree_free(params);
}

static gpt_config small_config(bool bias)
{
    gpt_config config;
    gpt_config_init(&config);
    config.n_layer = 1, config.n_head = 3, config.n_embd = 12, config.block_size = 5, config.vocab_size = 9, config.bias = bias;
    return config;
}

static void test_weight_names(void **state)
{
    (void)state;
    gpt_config config = small_config(true);
    gpt_model_config model = gpt_model_of(&config);
    for (int prefixed = 0; prefixed < 2; prefixed++) {
        weight_file file = weight_file_new(&model, prefixed ? gpt_weights_prefix : "");
        check_reading(&file, &config, NULL);

        const int64_t mask[] = { 1, 1, 5, 5 }, scalar[] = { 1 }, head[] = { 9, 12 };
        float numbers[108] = { 0 };
        weight_file_add(&file, prefixed ? "transformer.h.0.attn.bias" : "h.0.attn.bias", 4, mask, numbers);
        weight_file_add(&file, prefixed ? "transformer.h.0.attn.masked_bias" : "h.0.attn.masked_bias", 0, scalar, numbers);
        check_reading(&file, &config, NULL);

        weight_file_add(&file, "lm_head.weight", 2, head, rax_data(rax_get(file.params, "wte.weight")));
        check_reading(&file, &config, NULL);
        file.count--;
        weight_file_add(&file, "lm_head.weight", 2, head, numbers);
        check_reading(&file, &config, "lm_head.weight: differs from wte.weight");
        weight_file_free(&file);
    }
    gpt_config_free(&config);
}

static void test_weight_errors(void **state)
{
    (void)state;
    gpt_config config = small_config(true), without = small_config(false);
    gpt_model_config model = gpt_model_of(&config), model_without = gpt_model_of(&without);
    weight_file file = weight_file_new(&model, gpt_weights_prefix);

    check_reading(&file, &without, "bias: this model has no such tensor; with bias set to true it would");
    const int64_t pair[] = { 2 };
    weight_file_add(&file, "transformer.h.1.ln_1.weight", 1, pair, (float[]){ 1, 2 });
    check_reading(&file, &config, "model.safetensors: transformer.h.1.ln_1.weight: this model has no such tensor");
    file.count--;
    int last = file.count - 1;                        /* ln_f.bias */
    file.count = last;
    check_reading(&file, &config, "transformer.ln_f.bias: is missing");
    weight_file_add(&file, "transformer.ln_f.bias", 1, pair, (float[]){ 1, 2 });
    check_reading(&file, &config, "transformer.ln_f.bias: expected shape [12], got [2]");
    file.count = last;
    const int64_t width[] = { 12 };
    weight_file_add(&file, "transformer.ln_f.bias", 1, width, (float[12]){ [7] = NAN, [9] = INFINITY });
    check_reading(&file, &config, "model.safetensors: transformer.ln_f.bias: element 7 is nan");
    weight_file_free(&file);

    file = weight_file_new(&model_without, "");
    check_reading(&file, &config, "h.0.ln_1.bias: is missing");
    weight_file_free(&file);
    gpt_config_free(&config);
    gpt_config_free(&without);
}

/* The number of heads cannot be seen in the weights. */
static void test_description(void **state)
{
    (void)state;
    gpt_config config = small_config(true);
    gpt_model_config model = gpt_model_of(&config);
    weight_file file = weight_file_new(&model, gpt_weights_prefix);
    char *path = gpt_path_join(file.folder, "config.json");
    const char *const texts[][2] = {
        { "{\"n_head\": 3, \"n_embd\": 12, \"activation_function\": \"gelu_new\", \"layer_norm_epsilon\": 1e-05}", NULL },
        { "{\"n_head\": 2}", "config.json: n_head: the weights were made with 2, the configuration says n_head = 3" },
        { "{\"n_positions\": 1024}", "the configuration says block_size = 5" },
        { "{\"activation_function\": \"relu\"}", "activation_function" },
        { "{\"layer_norm_epsilon\": 1e-06}", "layer_norm_epsilon" },
        { "{", "config.json" },
    };
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        gpt_new_file *text = gpt_new_file_open(path);
        gpt_new_file_write(text, texts[i][0], strlen(texts[i][0]));
        assert_true(gpt_new_file_commit(text, NULL));
        check_reading(&file, &config, texts[i][1]);
    }
    rax_free(path);
    weight_file_free(&file);
    gpt_config_free(&config);
}

/* -- sampling --------------------------------------------------------------------------------------------------------------- */

static void logits_step(rax_args *in, rax_results *out)
{
    rax_tree cache;
    rax_return_tensor(out, 0, gpt_logits(rax_arg_tree(in, 0), rax_arg_tree(in, 1), rax_arg_tensor(in, 2), rax_arg_tensor(in, 3), rax_arg_tensor(in, 4),
                                         rax_arg_record(in, 5), &cache));
    rax_return_tree(out, 1, cache);
}

static double minus_log_softmax(const float *logits, int n, int target)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += exp((double)logits[i]);
    return log(sum) - logits[target];
}

/* The loss token by token through the cache, `block` tokens at a time and the rest singly, is that of the whole at once. */
static void check_cache(int block)
{
    enum { T = 10, V = 50 };
    rax_fn *many = rax_function(logits_step, "many", "params: tree, cache: tree, ids: i32[1,T], position: i32, count: i32, config: record");
    rax_fn *eval = gpt_eval_step_new();
    rax_tree params = random_params(&small), cache = gpt_cache_new(&small, 12);
    rax_tensor wte = rax_get(params, "wte.weight"), logits = RAX_NO_TENSOR;
    for (int64_t i = 0; i < rax_count(wte); i++)
        ((float *)rax_data(wte))[i] *= 20;                                        /* so that the tokens matter */
    int32_t x[T + 2] = { 3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 0, 0 }, y[T];
    for (int i = 0; i < T; i++)
        y[i] = i < T - 1 ? x[i + 1] : 7;

    for (int at = 0; at < T; at++) {
        bool whole = at + block <= T && at % block == 0;
        rax_tensor ids = rax_tensor_from(RAX_I32, RAX_SHAPE(1, whole ? block : 1), x + at);
        /* A count below the block's: the rest is written over when the next one comes. */
        for (int count = 1; count <= (whole ? block : 1); count++) {
            rax_value args[] = { rax_pass_tree(params), rax_pass_tree(cache), rax_pass_tensor(ids), rax_pass_number(at), rax_pass_number(count),
                                 rax_pass_record(&small, &gpt_model_record) };
            rax_into results[] = { rax_into_tensor(&logits), rax_into_tree(&cache) };
            CALL(many, args, results);
            int32_t only[T];
            for (int i = 0; i < T; i++)
                only[i] = i == at + count - 1 ? y[i] : -1;
            NEAR(minus_log_softmax(rax_data(logits), V, y[at + count - 1]), eval_loss(eval, &small, params, 1, T, x, only), 1e-5);
        }
        rax_tensor_free(ids);
        at += whole ? block - 1 : 0;
    }
    rax_tensor_free(logits);
    rax_tree_free(params);
    rax_tree_free(cache);
    rax_function_free(many);
    rax_function_free(eval);
}

static void test_cache(void **state)
{
    (void)state;
    check_cache(1);
    check_cache(4);
}

typedef struct { int count; int32_t id[200]; } text;

static bool keep(void *context, int32_t id)
{
    text *t = context;
    t->id[t->count++] = id;
    return true;
}

static text sample(gpt_sampler *sampler, gpt_sample_options options, uint32_t number, int prompt_length)
{
    int32_t prompt[40];
    text t = { 0 };
    for (int i = 0; i < prompt_length; i++)
        prompt[i] = i % 50;
    if (!gpt_sample(sampler, &options, number, prompt, prompt_length, keep, &t))
        fail_msg("%s", rax_error());
    return t;
}

static void test_sampling(void **state)
{
    (void)state;
    rax_tree params = random_params(&small);
    gpt_sampler *sampler = gpt_sampler_new(&small, params);
    assert_non_null(sampler);
    gpt_sample_options options = { .max_new_tokens = 35, .temperature = 1, .seed = 3, .n_ids = 41, .end_of_text = -1 };

    /* Prompts shorter and longer than the context, texts that outgrow it. */
    const int lengths[] = { 1, 4, 10, 11, 33 };
    for (int i = 0; i < 5; i++) {
        text a = sample(sampler, options, 0, lengths[i]), b = sample(sampler, options, 0, lengths[i]), c = sample(sampler, options, 1, lengths[i]);
        assert_int_equal(a.count, 35);
        assert_memory_equal(&a, &b, sizeof a);
        assert_memory_not_equal(&a, &c, sizeof a);
        for (int j = 0; j < a.count; j++)
            assert_in_range(a.id[j], 0, 40);
    }
    text drawn = sample(sampler, options, 0, 4);
    options.seed++;
    text other = sample(sampler, options, 0, 4);
    assert_memory_not_equal(&drawn, &other, sizeof drawn);
    options.seed--;

    options.end_of_text = drawn.id[20];
    text ended = sample(sampler, options, 0, 4);
    assert_true(ended.count <= 20 && ended.count > 0);
    for (int j = 0; j < ended.count; j++)
        assert_int_equal(ended.id[j], drawn.id[j]);
    options.end_of_text = -1;

    options.temperature = 0;
    text likeliest = sample(sampler, options, 0, 4);
    options.temperature = 1, options.top_k = 1;
    text best_of_one = sample(sampler, options, 5, 4);
    assert_memory_equal(&likeliest, &best_of_one, sizeof likeliest);
    gpt_sampler_free(sampler);
    rax_tree_free(params);
}

/* With equal logits each id has the same chance; of the top k alone the others have none. */
static void test_draws(void **state)
{
    (void)state;
    gpt_model_config config = { .n_layer = 1, .n_head = 1, .n_embd = 4, .block_size = 8, .vocab_size = 5 };
    rax_tree params = random_params(&config);
    float *wte = rax_data(rax_get(params, "wte.weight"));
    memset(wte, 0, sizeof(float) * 20);
    gpt_sampler *sampler = gpt_sampler_new(&config, params);
    gpt_sample_options options = { .max_new_tokens = 200, .temperature = 1, .seed = 1, .n_ids = 5, .end_of_text = -1 };
    int counts[5] = { 0 }, n = 0;
    for (uint32_t number = 0; number < 10; number++) {
        text t = sample(sampler, options, number, 1);
        for (int i = 0; i < t.count; i++, n++)
            counts[t.id[i]]++;
    }
    for (int i = 0; i < 5; i++)
        NEAR(counts[i], n / 5.0, 5 * sqrt(n * 0.2 * 0.8));
    gpt_sampler_free(sampler);
    rax_tree_free(params);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_philox),       cmocka_unit_test(test_normal),
        cmocka_unit_test(test_initial_weights), cmocka_unit_test(test_learning_rate),
        cmocka_unit_test(test_evaluation),   cmocka_unit_test(test_dropout),         cmocka_unit_test(test_accumulation),
        cmocka_unit_test(test_bf16),         cmocka_unit_test(test_weight_names),    cmocka_unit_test(test_weight_errors),
        cmocka_unit_test(test_description),  cmocka_unit_test(test_cache),           cmocka_unit_test(test_sampling),
        cmocka_unit_test(test_draws),
    };
    rax_configure(&(rax_settings){ .quiet = true, .no_jit = getenv("RAX_NO_JIT") != NULL, .cache_dir = "" });
    int failed = cmocka_run_group_tests_name("model", tests, NULL, NULL);
    rax_shutdown();
    return failed;
}
