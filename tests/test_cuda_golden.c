/* Training runs by the CUDA backend, on the stand-in for a GPU, against runs that PyTorch made in float64: the whole step as one graph, every
 * kernel of it executed by the emulator. Those of the first run are also compiled for sm_80 and sm_90 by NVRTC, where it is installed. */
#include "tests/golden_runs.h"

#include "data/data.h"
#include "nanogpt/train.h"
#include "tests/cuda_nvrtc.h"
#include "tests/cuda_standin.h"

static int never(void) { return 0; }

static void train_batch(void *context, uint64_t m, int32_t *x, int32_t *y) { data_loader_batch(context, m, x, y); }

/* rax train, without the command line. */
static void train(const gpt_config *config)
{
    data_corpus corpus;
    data_places places = {0};
    if (!data_corpus_open_files(&corpus, config->train_data, config->val_data, config->vocab_size, &places))
        fail_msg("%s", rax_error());
    data_loader *loader = data_loader_new(corpus.train, config->sampling == GPT_SAMPLING_RANDOM ? DATA_RANDOM : DATA_SEQUENTIAL, (uint64_t)config->seed, DATA_STREAM_TRAIN,
                                          config->batch_size, config->block_size);
    assert_non_null(loader);
    gpt_batches batches = { .context = loader, .train = train_batch };
    gpt_trainer *trainer = gpt_trainer_new(config, &batches);
    if (!trainer || !gpt_trainer_run(trainer, never))
        fail_msg("%s", rax_error());
    gpt_trainer_free(trainer);
    data_loader_free(loader);
    data_corpus_close(&corpus);
}

static void test_run(void **state)
{
    const char *folder = *state;
    char out[] = "/tmp/rax-cuda-golden-XXXXXX";
    gpt_config config;
    if (access(folder, F_OK) != 0) {
        print_message("%s is not here\n", folder);
        skip();
    }
    assert_non_null(mkdtemp(out));
    char *path = gpt_path_join(folder, "config.json");
    const gpt_setting more[] = { { "out_dir", out }, { "device", "cuda" }, { "eval_interval", "0" }, { "log_interval", "1000" } };
    if (!gpt_config_load(&config, path, more, (int)COUNT_OF(more)))
        fail_msg("%s", rax_error());

    int launches = standin.launches, captures = standin.captures;
    cuda_library nvrtc;
    bool first = launches == 0;
    standin.nvrtc = first && nvrtc_is_here(&nvrtc) ? &nvrtc : NULL;
    cuda_library_use(&standin_library);
    if (!rax_configure(&(rax_settings){ .device = "cuda", .quiet = true, .cache_dir = first ? "" : NULL }))
        fail_msg("%s", rax_error());
    train(&config);
    assert_true(!standin.nvrtc || standin.compiled_by_nvrtc == 2 * standin.compiled);
    standin.nvrtc = NULL;
    rax_shutdown();
    standin_end();
    assert_int_equal(standin.captures - captures, 1);
    assert_true(standin.launches - launches > 20 * config.max_iters);

    char *expected = gpt_path_join(folder, "expected.jsonl"), *metrics = gpt_path_join(out, "metrics.jsonl");
    char *final = gpt_path_join(folder, "final.safetensors"), *model = gpt_path_join(out, "latest/model.safetensors");
    compare_rows(expected, metrics);
    compare_weights(final, model, &config);
    gpt_folder_remove(out);
    rax_free(path);
    rax_free(expected);
    rax_free(metrics);
    rax_free(final);
    rax_free(model);
    gpt_config_free(&config);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(test_run, "tests/fixtures/golden/one-head"), cmocka_unit_test_prestate(test_run, "tests/fixtures/golden/odd-widths"),
        cmocka_unit_test_prestate(test_run, "../shared/golden/tiny"),
    };
    return cmocka_run_group_tests_name("golden runs of the CUDA backend", tests, NULL, NULL);
}
