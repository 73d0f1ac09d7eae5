/* GPT-2 124M's training step (12 layers, 1024 tokens, batches of 16, dropout and biases), in f32 and in bf16: every
 * kernel compiled by NVRTC for sm_80 and for sm_90, each as it is planned for that card, and some blocks of each
 * executed as PTX, at the step's own sizes. Of memory nothing is there but what these blocks touch. */
#include "tests/graphs.h"

#include "nanogpt/train_step.h"
#include "tests/cuda_nvrtc.h"
#include "tests/cuda_standin.h"

enum { BATCH = 16, TOKENS = 1024 };

/* One step on a card of so much memory. False: what it says is rax_error(). */
static bool call_step(bool bf16, int major, int micro_batches, size_t memory)
{
    const gpt_model_config model = { .n_layer = 12, .n_head = 12, .n_embd = 768, .block_size = TOKENS, .vocab_size = 50304, .bias = true, .dropout = 0.1, .bf16 = bf16 };
    const gpt_optimizer_config optimizer = { .learning_rate = 6e-4, .min_lr = 6e-5, .warmup_iters = 2000, .lr_decay_iters = 600000, .weight_decay = 0.1, .beta1 = 0.9, .beta2 = 0.95,
                                             .grad_clip = 1 };
    standin.arch_major = major;
    standin.most_bytes = memory;
    cuda_library_use(&standin_library);
    if (!rax_configure(&(rax_settings){ .device = "cuda", .quiet = true, .cache_dir = "" }))
        fail_msg("%s", rax_error());
    rax_tree params = gpt_params_new(&model), moments = gpt_moments_new(params);
    assert_true(rax_is_tree(params) && rax_is_tree(moments));
    rax_tensor x = rax_tensor_new(RAX_I32, RAX_SHAPE(micro_batches, BATCH, TOKENS)), y = rax_tensor_new(RAX_I32, RAX_SHAPE(micro_batches, BATCH, TOKENS));
    rax_tensor loss = {0}, norm = {0}, lr = {0};
    int32_t *inputs = rax_overwrite(x), *targets = rax_overwrite(y);
    for (int i = 0; i < micro_batches * BATCH * TOKENS; i++) {
        inputs[i] = (int)(i * 7919LL % model.vocab_size);
        targets[i] = (int)((i + 1) * 7919LL % model.vocab_size);
    }
    rax_fn *step = gpt_train_step_new();
    rax_value args[] = { rax_pass_tree(params), rax_pass_tree(moments), rax_pass_tensor(x), rax_pass_tensor(y), rax_pass_number(0), rax_pass_record(&model, &gpt_model_record),
                         rax_pass_record(&optimizer, &gpt_optimizer_record) };
    rax_into results[] = { rax_into_tree(&params), rax_into_tree(&moments), rax_into_tensor(&loss), rax_into_tensor(&norm), rax_into_tensor(&lr) };
    bool ran = rax_call(step, args, results);
    rax_function_free(step);
    rax_tree_free(params);
    rax_tree_free(moments);
    rax_tensor_free(x);
    rax_tensor_free(y);
    if (ran)
        rax_tensor_free(loss), rax_tensor_free(norm), rax_tensor_free(lr);
    rax_shutdown();
    standin_end();
    return ran;
}

/* The stand-in's card has no room for the intermediates, which the backend says once all code is there. */
static void compile_step(bool bf16, int major, int micro_batches)
{
    int compiled = standin.compiled, gelu = CUDA_EPILOGUE_GELU | CUDA_EPILOGUE_GELU_GRADIENT | CUDA_EPILOGUE_AUX | CUDA_EPILOGUE_BIAS;
    standin.asked_epilogues = 0;
    assert_false(call_step(bf16, major, micro_batches, (size_t)3 << 30));
    if (!strstr(rax_error(), "train_step: does not fit on the device: "))
        fail_msg("%s", rax_error());
    assert_true(standin.compiled - compiled >= 20 && standin.compiled_by_nvrtc == standin.compiled);
    assert_int_equal(standin.asked_epilogues & gelu, major >= 9 ? gelu : CUDA_EPILOGUE_BIAS);
    assert_true(standin.asked_epilogues & CUDA_EPILOGUE_SUM_A);
    if (standin.attention_spills)
        fail_msg("sm_%d: %d kernels of attention spill registers to memory", 10 * major, standin.attention_spills);
    print_message("# %s, sm_%d: %d kernels\n", bf16 ? "bf16" : "f32", 10 * major, standin.compiled - compiled);
}

static void test_compiles(void **state)
{
    cuda_library nvrtc;
    (void)state;
    if (!nvrtc_is_here(&nvrtc))
        skip();
    standin.nvrtc = &nvrtc;
    standin.only_nvrtc = true;
    for (int major = 8; major <= 9; major++)
        for (int bf16 = 0; bf16 < 2; bf16++)
            compile_step(bf16, major, bf16 ? 2 : 1);
    assert_int_equal(standin.attention_kernels, 2 * 2 * 3);
    assert_true(standin.keeping_kernels >= 4);
    assert_int_equal(standin.keeping_alone, 0);
}

/* Addresses, alignment and order at the sizes that count; and that memory is read in whole sectors, and shared memory
 * without conflicts. What products would have left is zeros. */
static void test_blocks(void **state)
{
    enum { SAMPLED = 4 };
    cuda_library nvrtc;
    (void)state;
    if (standin_is_device() || !nvrtc_is_here(&nvrtc))
        skip();
    standin.nvrtc = NULL;
    standin.only_nvrtc = false;
    standin.runs_ptx = true;
    standin.sampled_blocks = SAMPLED;
    for (int bf16 = 0; bf16 < 2; bf16++) {
        const ptx_counts *c = &standin.counted;
        standin.counted = (ptx_counts){0};
        if (!call_step(bf16, bf16 ? 9 : 8, 1, (size_t)100 << 30))
            fail_msg("%s", rax_error());
        double sectors = (double)c->sectors / (double)c->sectors_least, passes = (double)c->shared_passes / (double)c->shared_least;
        print_message("# %s: %lld blocks, %.2f of the fewest sectors, %.2f of the fewest passes of shared memory, mma %lld\n",
                      bf16 ? "bf16, sm_90" : "f32, sm_80", (long long)c->blocks, sectors, passes, (long long)c->products);
        assert_true(c->blocks > 100 && sectors < 1.2 && passes < 1.1);
        assert_int_equal(c->products > 0, bf16);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_compiles), cmocka_unit_test(test_blocks) };
    return cmocka_run_group_tests_name("GPT-2 124M's kernels by NVRTC", tests, NULL, NULL);
}
