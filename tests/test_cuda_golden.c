/* Training runs by the CUDA backend, on the stand-in for a GPU, against runs that PyTorch made in float64: the whole step as one graph, every
 * kernel of it executed by the emulator. Those of the first run are also compiled for sm_80 and sm_90 by NVRTC, where it is installed. */
#include "tests/cuda_runs.h"

#include "tests/cuda_nvrtc.h"

/* Asked twice before each iteration, which waits for the loss of the one before and for nothing else, and whose batch is there before that one is
 * over. The first three allocate and capture. */
static struct { int asked, blocking_waits, stream_waits, copies_ahead; } seen;

static int never(void)
{
    if (seen.asked++ % 2)
        return 0;
    if (seen.asked > 7 && !standin_is_device()) {
        assert_int_equal(standin.blocking_waits - seen.blocking_waits, 1);
        assert_int_equal(standin.stream_waits, seen.stream_waits);
        assert_true(!standin.eager_copies || standin.copies_ahead - seen.copies_ahead == 2);
    }
    seen.blocking_waits = standin.blocking_waits;
    seen.stream_waits = standin.stream_waits;
    seen.copies_ahead = standin.copies_ahead;
    return 0;
}

static void check_run(const char *folder)
{
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
    bool first = launches == 0 && !standin_is_device();
    standin.nvrtc = first && nvrtc_is_here(&nvrtc) ? &nvrtc : NULL;
    memset(&seen, 0, sizeof seen);
    if (!run_training(&config, first ? "" : NULL, never, NULL))
        fail_msg("%s", rax_error());
    assert_true(seen.asked > 10);
    assert_true(!standin.nvrtc || standin.compiled_by_nvrtc == 2 * standin.compiled);
    standin.nvrtc = NULL;
    if (!standin_is_device()) {
        assert_int_equal(standin.captures - captures, 2);     /* for two batches by turns */
        assert_true(standin.launches - launches > 20 * config.max_iters);
    }

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

static void test_run(void **state) { check_run(*state); }

/* Copies that happen as soon as their waits let them. */
static void test_eager_copies(void **state)
{
    standin.eager_copies = true;
    check_run(*state);
    standin.eager_copies = false;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(test_run, "tests/fixtures/golden/one-head"), cmocka_unit_test_prestate(test_run, "tests/fixtures/golden/odd-widths"),
        cmocka_unit_test_prestate(test_run, "../shared/golden/tiny"), cmocka_unit_test_prestate(test_eager_copies, "tests/fixtures/golden/one-head"),
    };
    return cmocka_run_group_tests_name("golden runs of the CUDA backend", tests, NULL, NULL);
}
