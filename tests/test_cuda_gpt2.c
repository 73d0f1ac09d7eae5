/* Every kernel of GPT-2 124M's training step (12 layers, 1024 tokens, batches of 16, dropout and biases), in f32 and in bf16, compiled by NVRTC for sm_80 and for sm_90,
 * each as it is planned for that card. Nothing runs: the stand-in's card has no room for the intermediates, which the backend says once all code is there, and memory
 * that nobody touches costs nothing. */
#include "tests/graphs.h"

#include "nanogpt/train_step.h"
#include "tests/cuda_nvrtc.h"
#include "tests/cuda_standin.h"

enum { BATCH = 16, TOKENS = 1024 };

static void compile_step(bool bf16, int major, int micro_batches)
{
    const gpt_model_config model = { .n_layer = 12, .n_head = 12, .n_embd = 768, .block_size = TOKENS, .vocab_size = 50304, .bias = true, .dropout = 0.1, .bf16 = bf16 };
    const gpt_optimizer_config optimizer = { .learning_rate = 6e-4, .min_lr = 6e-5, .warmup_iters = 2000, .lr_decay_iters = 600000, .weight_decay = 0.1, .beta1 = 0.9, .beta2 = 0.95,
                                             .grad_clip = 1 };
    standin.arch_major = major;
    standin.most_bytes = (size_t)3 << 30;
    cuda_library_use(&standin_library);
    if (!rax_configure(&(rax_settings){ .device = "cuda", .quiet = true, .cache_dir = "" }))
        fail_msg("%s", rax_error());
    rax_tree params = gpt_params_new(&model), moments = gpt_moments_new(params);
    assert_true(rax_is_tree(params) && rax_is_tree(moments));
    rax_tensor x = rax_tensor_new(RAX_I32, RAX_SHAPE(micro_batches, BATCH, TOKENS)), y = rax_tensor_new(RAX_I32, RAX_SHAPE(micro_batches, BATCH, TOKENS)), loss = {0}, norm = {0}, lr = {0};
    rax_fn *step = gpt_train_step_new();
    rax_value args[] = { rax_pass_tree(params), rax_pass_tree(moments), rax_pass_tensor(x), rax_pass_tensor(y), rax_pass_number(0), rax_pass_record(&model, &gpt_model_record),
                         rax_pass_record(&optimizer, &gpt_optimizer_record) };
    rax_into results[] = { rax_into_tree(&params), rax_into_tree(&moments), rax_into_tensor(&loss), rax_into_tensor(&norm), rax_into_tensor(&lr) };
    int compiled = standin.compiled, gelu = CUDA_EPILOGUE_GELU | CUDA_EPILOGUE_GELU_GRADIENT | CUDA_EPILOGUE_AUX | CUDA_EPILOGUE_BIAS;
    standin.asked_epilogues = 0;
    assert_false(rax_call(step, args, results));
    if (!strstr(rax_error(), "train_step: does not fit on the device: "))
        fail_msg("%s", rax_error());
    assert_true(standin.compiled - compiled >= 20 && standin.compiled_by_nvrtc == standin.compiled);
    assert_int_equal(standin.asked_epilogues & gelu, major >= 9 ? gelu : CUDA_EPILOGUE_BIAS);
    assert_true(standin.asked_epilogues & CUDA_EPILOGUE_SUM_A);
    if (standin.attention_spills)
        fail_msg("sm_%d: %d kernels of attention spill registers to memory", 10 * major, standin.attention_spills);
    print_message("# %s, sm_%d: %d kernels\n", bf16 ? "bf16" : "f32", 10 * major, standin.compiled - compiled);
    rax_function_free(step);
    rax_tree_free(params);
    rax_tree_free(moments);
    rax_tensor_free(x);
    rax_tensor_free(y);
    rax_shutdown();
    standin_end();
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

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_compiles) };
    return cmocka_run_group_tests_name("GPT-2 124M's kernels by NVRTC", tests, NULL, NULL);
}
