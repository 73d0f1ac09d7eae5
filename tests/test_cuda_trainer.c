/* The trainer on a device, by the stand-in for a GPU: what it computes is what the CPU computes, checkpoints move between the two, and whatever happens to
 * the device is one clear line that leaves the last checkpoint as it was. */
#include "tests/cuda_runs.h"

#include <math.h>

#include "nanogpt/checkpoint_files.h"
#include "nanogpt/sample.h"

/* -- runs ----------------------------------------------------------------------------------------------------------------- */

/* Two layers of three heads with dropout over random batches of two micro-batches. More settings end in {0}. */
static gpt_config config_of(const char *out, const char *device, const gpt_setting *more)
{
    gpt_setting settings[16] = { { "out_dir", out }, { "device", device }, { "dropout", "0.2" }, { "sampling", "random" }, { "gradient_accumulation_steps", "2" },
                                 { "eval_interval", "2" }, { "eval_iters", "3" }, { "log_interval", "1000" }, { "max_iters", "6" }, { "seed", "7" } };
    gpt_config config;
    int n = 10;
    for (; more && more->key; more++)
        settings[n++] = *more;
    if (!gpt_config_load(&config, "tests/fixtures/golden/odd-widths/config.json", settings, n))
        fail_msg("%s", rax_error());
    return config;
}

static void train(const char *out, const char *device, const gpt_setting *more, run_end *end)
{
    gpt_config config = config_of(out, device, more);
    if (!run_training(&config, NULL, run_never, end))
        fail_msg("%s", rax_error());
    gpt_config_free(&config);
}

/* Rows of metrics, the evaluations among them. Returns how many were compared. */
static int compare_metrics(const char *expected_out, const char *got_out, double tolerance)
{
    char *paths[2] = { gpt_path_join(expected_out, "metrics.jsonl"), gpt_path_join(got_out, "metrics.jsonl") }, *text[2], *line[2];
    size_t bytes;
    int compared = 0;
    for (int i = 0; i < 2; i++)
        if (!(line[i] = text[i] = gpt_file_read(paths[i], &bytes)))
            fail_msg("%s", rax_error());
    while (*line[0] && *line[1]) {
        cJSON *row[2];
        for (int i = 0; i < 2; i++) {
            row[i] = cJSON_Parse(line[i]);
            line[i] = strchr(line[i], '\n') + 1;
        }
        static const char *const keys[] = { "iter", "loss", "val_loss", "grad_norm", "lr" };
        for (size_t k = 0; k < COUNT_OF(keys); k++) {
            const cJSON *a = cJSON_GetObjectItem(row[0], keys[k]), *b = cJSON_GetObjectItem(row[1], keys[k]);
            assert_true(!a == !b);
            if (a && !(fabs(a->valuedouble - b->valuedouble) <= tolerance * fabs(a->valuedouble)))
                fail_msg("row %d: %s: expected %.9g, got %.9g", compared, keys[k], a->valuedouble, b->valuedouble);
        }
        cJSON_Delete(row[0]);
        cJSON_Delete(row[1]);
        compared++;
    }
    assert_true(*line[0] == *line[1]);
    for (int i = 0; i < 2; i++) {
        rax_free(paths[i]);
        rax_free(text[i]);
    }
    return compared;
}

static char *new_folder(char *pattern)
{
    assert_non_null(mkdtemp(pattern));
    return pattern;
}

/* -- the same as on the CPU --------------------------------------------------------------------------------------------------- */

/* A loss with dropout agrees to so many digits only where every mask is the same. */
static void test_moves_between_devices(void **state)
{
    char cpu[] = "/tmp/rax-cpu-XXXXXX", device[] = "/tmp/rax-cuda-XXXXXX", back[] = "/tmp/rax-back-XXXXXX";
    const gpt_setting half[] = { { "max_iters", "3" }, { 0 } }, rest[] = { { "init_from", "resume" }, { 0 } };
    (void)state;
    train(new_folder(cpu), "cpu", NULL, NULL);
    train(new_folder(device), "cpu", half, NULL);
    train(device, "cuda", rest, NULL);
    train(new_folder(back), "cuda", half, NULL);
    train(back, "cpu", rest, NULL);
    assert_int_equal(compare_metrics(cpu, device, 2e-5), 10);
    assert_int_equal(compare_metrics(cpu, back, 2e-5), 10);
    gpt_folder_remove(cpu);
    gpt_folder_remove(device);
    gpt_folder_remove(back);
}

/* In one run and in two: the same bits. */
static void test_resume(void **state)
{
    char whole[] = "/tmp/rax-whole-XXXXXX", parts[] = "/tmp/rax-parts-XXXXXX";
    const gpt_setting half[] = { { "max_iters", "3" }, { 0 } }, rest[] = { { "init_from", "resume" }, { 0 } };
    (void)state;
    train(new_folder(whole), "cuda", NULL, NULL);
    train(new_folder(parts), "cuda", half, NULL);
    train(parts, "cuda", rest, NULL);
    assert_int_equal(compare_metrics(whole, parts, 0), 10);
    gpt_folder_remove(whole);
    gpt_folder_remove(parts);
}

static void test_bf16(void **state)
{
    char f32[] = "/tmp/rax-f32-XXXXXX", bf16[] = "/tmp/rax-bf16-XXXXXX";
    const gpt_setting plain[] = { { "max_iters", "12" }, { "eval_interval", "0" }, { "grad_clip", "0" }, { 0 } };
    const gpt_setting rounded[] = { { "max_iters", "12" }, { "eval_interval", "0" }, { "grad_clip", "0" }, { "dtype", "bf16" }, { 0 } };
    (void)state;
    train(new_folder(f32), "cpu", plain, NULL);
    train(new_folder(bf16), "cuda", rounded, NULL);
    char *a = gpt_path_join(f32, "metrics.jsonl"), *b = gpt_path_join(bf16, "metrics.jsonl");
    cJSON *expected = read_rows(a), *got = read_rows(b);
    assert_int_equal(cJSON_GetArraySize(got), 12);
    for (int i = 0; i < 12; i++) {
        double x = number(cJSON_GetArrayItem(expected, i), "loss"), y = number(cJSON_GetArrayItem(got, i), "loss");
        if (!(fabs(y - x) <= 0.02 * x))
            fail_msg("iteration %d: expected a loss within 2 %% of %g, got %g", i, x, y);
    }
    cJSON_Delete(expected);
    cJSON_Delete(got);
    rax_free(a);
    rax_free(b);
    gpt_folder_remove(f32);
    gpt_folder_remove(bf16);
}

/* -- evaluation and sampling ------------------------------------------------------------------------------------------------------ */

enum { TEXT = 40 };
typedef struct { int n; int32_t ids[TEXT]; double loss; } drawn;
static drawn seen[2];

static bool keep_token(void *context, int32_t id)
{
    drawn *d = context;
    d->ids[d->n++] = id;
    return true;
}

/* A prompt longer than a block of tokens, a text longer than the context, and the loss over the whole split. */
static void look_at(const gpt_config *config, const gpt_trainer *trainer)
{
    const gpt_model_config model = gpt_model_of(config);
    const gpt_sample_options options = { .max_new_tokens = TEXT, .temperature = 0.9, .top_k = 20, .seed = 5, .n_ids = config->vocab_size, .end_of_text = -1 };
    const int32_t prompt[] = { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13 };
    drawn *d = &seen[config->device == GPT_DEVICE_CUDA];
    gpt_sampler *sampler = gpt_sampler_new(&model, gpt_trainer_params(trainer));
    d->n = 0;
    if (!sampler || !gpt_sample(sampler, &options, 0, prompt, (int)COUNT_OF(prompt), keep_token, d))
        fail_msg("%s", rax_error());
    gpt_sampler_free(sampler);
    data_places places = {0};
    data_corpus corpus;
    assert_true(data_corpus_open_files(&corpus, config->train_data, config->val_data, config->vocab_size, &places));
    data_loader *loader = data_loader_new(corpus.val, DATA_RANDOM, 0, 0, config->batch_size, config->block_size);
    run_loaders l = { .val = loader };
    if (!gpt_evaluate(config, gpt_trainer_params(trainer), run_val_part, &l, run_never, &d->loss))
        fail_msg("%s", rax_error());
    data_loader_free(loader);
    data_corpus_close(&corpus);
}

static void test_evaluates_and_samples(void **state)
{
    char out[] = "/tmp/rax-seen-XXXXXX";
    const gpt_setting first[] = { { "max_iters", "4" }, { "eval_interval", "0" }, { 0 } };
    const gpt_setting again[] = { { "max_iters", "4" }, { "eval_interval", "0" }, { "init_from", "resume" }, { 0 } };
    (void)state;
    train(new_folder(out), "cpu", first, look_at);
    train(out, "cuda", again, look_at);
    assert_int_equal(seen[0].n, TEXT);
    assert_int_equal(seen[1].n, TEXT);
    assert_memory_equal(seen[0].ids, seen[1].ids, sizeof seen[0].ids);
    if (!(fabs(seen[0].loss - seen[1].loss) <= 2e-6 * seen[0].loss))
        fail_msg("expected a loss of %.9g, got %.9g", seen[0].loss, seen[1].loss);
    gpt_folder_remove(out);
}

/* -- what goes wrong ---------------------------------------------------------------------------------------------------------------- */

/* Ends the device in the iteration that follows the checkpoint at 4. */
static struct { const char *folder; int error, asked; char message[1024]; } plan;

static int break_device(void)
{
    char *path = gpt_path_join(plan.folder, "ckpt-000004");
    if (access(path, F_OK) == 0 && ++plan.asked == 5) {         /* behind the evaluation, which asks for each of its three batches */
        standin.fails_at = standin.launches + 5;
        standin.fails_with = plan.error;
    }
    rax_free(path);
    return 0;
}

static void check_failure(int error, const char *begin, const char *part)
{
    char out[] = "/tmp/rax-lost-XXXXXX", whole[] = "/tmp/rax-whole-XXXXXX";
    const gpt_setting often[] = { { "checkpoint_interval", "4" }, { "max_iters", "8" }, { 0 } };
    const gpt_setting rest[] = { { "checkpoint_interval", "4" }, { "max_iters", "8" }, { "init_from", "resume" }, { 0 } };
    gpt_config config = config_of(new_folder(out), "cuda", often);
    plan.folder = out;
    plan.error = error;
    plan.asked = 0;
    bool ran = run_training(&config, NULL, break_device, NULL);
    standin.fails_at = standin.dead = 0;
    assert_false(ran);
    snprintf(plan.message, sizeof plan.message, "%s", rax_error());
    if (strncmp(rax_error(), begin, strlen(begin)) != 0 || !strstr(rax_error(), part) || strchr(rax_error(), '\n'))
        fail_msg("expected %s... %s, got %s", begin, part, rax_error());
    gpt_config_free(&config);
    train(out, "cpu", rest, NULL);                            /* from the checkpoint at 4 */
    train(new_folder(whole), "cpu", often, NULL);
    assert_int_equal(compare_metrics(whole, out, 2e-5), 13);
    gpt_folder_remove(out);
    gpt_folder_remove(whole);
}

static void test_device_lost(void **state)
{
    (void)state;
    if (standin_is_device())
        skip();
    check_failure(999, "device cuda: the device is lost: ", "(error 999 of ");
}

static void test_failed_kernel(void **state)
{
    (void)state;
    if (standin_is_device())
        skip();
    check_failure(700, "device cuda: a kernel has failed: an illegal memory access was encountered (error 700 of ", "; with RAX_CUDA_BLOCKING=1 it is named");
    setenv("RAX_CUDA_BLOCKING", "1", 1);
    check_failure(700, "train_step: k", "; its source is in ");
    unsetenv("RAX_CUDA_BLOCKING");
    assert_int_equal(access(strstr(plan.message, "its source is in ") + strlen("its source is in "), R_OK), 0);
}

static void test_out_of_memory(void **state)
{
    char out[] = "/tmp/rax-small-XXXXXX";
    (void)state;
    if (standin_is_device())
        skip();
    size_t most = standin.most_bytes;
    standin.most_bytes = 100000;                              /* parameters, and not moments */
    gpt_config config = config_of(new_folder(out), "cuda", NULL);
    bool ran = run_training(&config, NULL, run_never, NULL);
    standin.most_bytes = most;
    assert_false(ran);
    if (!strstr(rax_error(), "device cuda: out of memory: ") || !strstr(rax_error(), " MB are free; the largest tensors are 4 of f32[21,84], 0.0 MB each; ") || strchr(rax_error(), '\n'))
        fail_msg("got %s", rax_error());
    gpt_config_free(&config);
    gpt_folder_remove(out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_moves_between_devices), cmocka_unit_test(test_resume), cmocka_unit_test(test_bf16), cmocka_unit_test(test_evaluates_and_samples),
        cmocka_unit_test(test_device_lost), cmocka_unit_test(test_failed_kernel), cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests_name("the trainer on a device", tests, NULL, NULL);
}
