/* Whole training steps on every instruction set that the CPU has: the same bits for any number of threads, losses as the interpreter has
 * them, and bf16 beside f32 over a run. Sizes are odd: no width, context or vocabulary is a multiple of a vector. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "nanogpt/config.h"
#include "nanogpt/train_step.h"
#include "nanogpt/weights.h"

static const char *const isas[] = { "generic", "avx2", "avx512", "avx512bf16", "amx" };
enum { ISAS = sizeof isas / sizeof isas[0], MOST_STEPS = 100 };
static const bool both[] = { false, true };

/* False: the CPU has no such instructions. */
static bool configure(rax_settings settings)
{
    settings.quiet = true;
    rax_shutdown();
    if (rax_configure(&settings))
        return true;
    assert_non_null(strstr(rax_error(), "this CPU"));
    rax_error_clear();
    return false;
}

/* Letters, each by a rule from the one before it, but one in eight that is anything: something to be learnt. */
static void write_text(int32_t *text, int count, int vocab)
{
    uint32_t state = 12345;
    for (int i = 0; i < count; i++) {
        state = state * 1664525 + 1013904223;
        bool free = i == 0 || state >> 29 == 0;
        text[i] = free ? (int32_t)((state >> 8) % (uint32_t)vocab) : (text[i - 1] * 7 + 5) % vocab;
    }
}

typedef struct { gpt_model_config model; gpt_optimizer_config optimizer; int accumulation, batch, steps; } run_config;
typedef struct { double loss[MOST_STEPS], norm[MOST_STEPS]; int64_t n_weights; float *weights; } run_result;      /* weights: for rax_free */

/* All weights of a tree, one leaf after another. */
static void take_weights(run_result *r, rax_tree params)
{
    r->weights = rax_alloc(sizeof *r->weights * (size_t)gpt_count_elements(params));
    for (int i = 0; i < rax_tree_size(params); i++) {
        rax_tensor leaf = rax_leaf(params, i);
        memcpy(r->weights + r->n_weights, rax_data(leaf), sizeof *r->weights * (size_t)rax_count(leaf));
        r->n_weights += rax_count(leaf);
    }
}

/* Steps of training from scratch, each on the next pieces of the text. */
static run_result train(const run_config *config)
{
    enum { TEXT = 100000 };
    const int A = config->accumulation, B = config->batch, T = config->model.block_size, tokens = A * B * T;
    static int32_t text[TEXT];
    write_text(text, TEXT, config->model.vocab_size);
    rax_fn *fn = gpt_train_step_new();
    run_result r = { .n_weights = 0 };
    rax_tree params = gpt_params_new(&config->model), moments = gpt_moments_new(params);
    gpt_weights_init(params, &config->model);
    rax_tensor x = rax_tensor_new(RAX_I32, RAX_SHAPE(A, B, T)), y = rax_tensor_new(RAX_I32, RAX_SHAPE(A, B, T));
    rax_tensor loss = RAX_NO_TENSOR, norm = RAX_NO_TENSOR, lr = RAX_NO_TENSOR;
    for (int step = 0; step < config->steps; step++) {
        int at = step * tokens % (TEXT - tokens);
        memcpy(rax_data(x), text + at, sizeof *text * (size_t)tokens);
        memcpy(rax_data(y), text + at + 1, sizeof *text * (size_t)tokens);
        rax_value args[] = { rax_pass_tree(params), rax_pass_tree(moments), rax_pass_tensor(x), rax_pass_tensor(y), rax_pass_number(step),
                             rax_pass_record(&config->model, &gpt_model_record), rax_pass_record(&config->optimizer, &gpt_optimizer_record) };
        rax_into results[] = { rax_into_tree(&params), rax_into_tree(&moments), rax_into_tensor(&loss), rax_into_tensor(&norm), rax_into_tensor(&lr) };
        if (!rax_call(fn, args, results))
            fail_msg("%s", rax_error());
        r.loss[step] = rax_item(loss, 0);
        r.norm[step] = rax_item(norm, 0);
    }
    rax_tensor all[] = { x, y, loss, norm, lr };
    for (int i = 0; i < 5; i++)
        rax_tensor_free(all[i]);
    take_weights(&r, params);
    rax_tree_free(params);
    rax_tree_free(moments);
    rax_function_free(fn);
    return r;
}

static const run_config odd = {
    .model = { .n_layer = 2, .n_head = 3, .n_embd = 93, .block_size = 45, .vocab_size = 517, .bias = true, .dropout = 0.15, .seed = 11 },
    .optimizer = { .learning_rate = 1e-2, .min_lr = 1e-3, .lr_decay_iters = 8, .weight_decay = 0.1, .beta1 = 0.9, .beta2 = 0.99, .grad_clip = 1 },
    .accumulation = 2, .batch = 3, .steps = 2 };

/* -- threads ---------------------------------------------------------------------------------------------------------------- */

static void same_bits(const run_result *one, const run_result *many, const char *isa, bool bf16, int threads)
{
    const char *dtype = bf16 ? "bf16" : "f32";
    for (int i = 0; i < odd.steps; i++)
        if (one->loss[i] != many->loss[i] || one->norm[i] != many->norm[i])
            fail_msg("%s, %s, step %d: 1 thread has loss %.9g and grad_norm %.9g, %d threads %.9g and %.9g", isa, dtype, i, one->loss[i], one->norm[i],
                     threads, many->loss[i], many->norm[i]);
    assert_int_equal(one->n_weights, many->n_weights);
    for (int64_t i = 0; i < one->n_weights; i++)
        if (memcmp(&one->weights[i], &many->weights[i], sizeof(float)) != 0)
            fail_msg("%s, %s: weight %lld is %.9g with 1 thread, %.9g with %d", isa, dtype, (long long)i, one->weights[i], many->weights[i], threads);
}

static void same_bits_for_any_threads(void **state)
{
    static const int counts[] = { 2, 3, 8 };
    (void)state;
    for (int i = 0; i < 2 * ISAS; i++) {
        run_config config = odd;
        config.model.bf16 = both[i % 2];
        if (!configure((rax_settings){ .isa = isas[i / 2], .threads = 1 }))
            continue;
        run_result one = train(&config);
        assert_true(one.loss[0] != one.loss[1]);
        for (size_t t = 0; t < sizeof counts / sizeof counts[0]; t++) {
            assert_true(configure((rax_settings){ .isa = isas[i / 2], .threads = counts[t] }));
            run_result many = train(&config);
            same_bits(&one, &many, isas[i / 2], both[i % 2], counts[t]);
            rax_free(many.weights);
        }
        rax_free(one.weights);
    }
}

/* -- instruction sets --------------------------------------------------------------------------------------------------------- */

/* The second loss is of weights that all gradients have changed. Sums of up to 517 terms in f32, in another order; in bf16 the operands of
 * products round to neighbours where those sums differ. */
static void losses_are_the_interpreters(void **state)
{
    (void)state;
    for (int bf16 = 0; bf16 < 2; bf16++) {
        run_config config = odd;
        config.model.bf16 = bf16;
        config.accumulation = 1;
        config.batch = 2;
        assert_true(configure((rax_settings){ .no_jit = true }));
        run_result expected = train(&config);
        for (int i = 0; i < ISAS; i++) {
            if (!configure((rax_settings){ .isa = isas[i], .threads = 2 }))
                continue;
            run_result got = train(&config);
            for (int s = 0; s < config.steps; s++) {
                double loss = got.loss[s] / expected.loss[s] - 1, norm = got.norm[s] / expected.norm[s] - 1;
                if (!(fabs(loss) <= (bf16 ? 3e-3 : 2e-5)) || !(fabs(norm) <= (bf16 ? 3e-2 : 2e-4)))
                    fail_msg("%s, %s, step %d: loss %.9g is off by %.2g of itself, grad_norm %.9g by %.2g", isas[i], bf16 ? "bf16" : "f32", s, got.loss[s], loss,
                             got.norm[s], norm);
            }
            rax_free(got.weights);
        }
        rax_free(expected.weights);
    }
}

/* -- bf16 ------------------------------------------------------------------------------------------------------------------------ */

/* The model that is trained on a CPU, its warmup and batch cut short. With bf16 by instructions of its own, and by f32 after rounding. */
static void bf16_follows_f32(void **state)
{
    static const gpt_setting shorter[] = { { "warmup_iters", "10" }, { "lr_decay_iters", "100" }, { "batch_size", "4" } };
    gpt_config file;
    (void)state;
    if (!gpt_config_load(&file, "configs/shakespeare_char_cpu.json", shorter, 3))
        fail_msg("%s", rax_error());
    run_config config = { gpt_model_of(&file), gpt_optimizer_of(&file), 1, file.batch_size, MOST_STEPS };
    gpt_config_free(&file);
    assert_true(configure((rax_settings){ .threads = 2 }));
    run_result f32 = train(&config);
    assert_true(f32.loss[MOST_STEPS - 1] < 0.8 * f32.loss[0]);
    config.model.bf16 = true;
    static const char *const ways[] = { "avx2", NULL };
    for (int i = 0; i < 2; i++) {
        if (!configure((rax_settings){ .isa = ways[i], .threads = 2 }))
            continue;
        run_result bf16 = train(&config);
        bool differs = false;
        for (int s = 0; s < MOST_STEPS; s++) {
            if (!(fabs(bf16.loss[s] / f32.loss[s] - 1) <= 0.02))
                fail_msg("%s, iteration %d: f32 has loss %.6f, bf16 %.6f", ways[i] ? ways[i] : "the CPU's own", s, f32.loss[s], bf16.loss[s]);
            differs |= bf16.loss[s] != f32.loss[s];
        }
        assert_true(differs);
        rax_free(bf16.weights);
    }
    rax_free(f32.weights);
}

static int end(void **state)
{
    (void)state;
    rax_shutdown();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_bits_for_any_threads),
        cmocka_unit_test(losses_are_the_interpreters),
        cmocka_unit_test(bf16_follows_f32),
    };
    return cmocka_run_group_tests(tests, NULL, end);
}
