/* Runs of `rax train` against runs that PyTorch made in float64: every loss, every gradient norm, the weights at the end. The
 * golden runs lie beside the project, in ../shared/golden; tests/fixtures/golden has short ones at other shapes, which
 * make_fixtures.py wrote. Each is run with the JIT and by the interpreter. */
#include "tests/golden_runs.h"

typedef struct { const char *folder, *flag; } golden_run;

#define BOTH(folder) { folder, "" }, { folder, "--no-jit" }
static const golden_run runs[] = {
    BOTH("../shared/golden/tiny"),
    BOTH("../shared/golden/tiny-nobias"),
    BOTH("tests/fixtures/golden/odd-widths"),
    BOTH("tests/fixtures/golden/one-head"),
    BOTH("tests/fixtures/golden/one-token"),
    BOTH("tests/fixtures/golden/batch-of-one"),
    BOTH("tests/fixtures/golden/many-tokens"),
};
enum { RUNS = sizeof runs / sizeof runs[0] };

/* -- a run ----------------------------------------------------------------------------------------------------------- */

static void test_run(void **state)
{
    const golden_run *run = *state;
    const char *build = getenv("BUILD");
    char out[] = "/tmp/rax-golden-XXXXXX";
    gpt_config config;

    if (access(run->folder, F_OK) != 0) {
        print_message("%s is not here\n", run->folder);
        skip();
    }
    assert_non_null(mkdtemp(out));
    char *path = gpt_path_join(run->folder, "config.json");
    char *command = gpt_format("%s/rax train %s --out_dir=%s %s >%s/stdout 2>%s/stderr", build ? build : "build", path, out, run->flag, out, out);
    if (!gpt_config_load(&config, path, NULL, 0))
        fail_msg("%s", rax_error());
    if (system(command) != 0)
        fail_msg("failed: %s", command);

    char *expected = gpt_path_join(run->folder, "expected.jsonl"), *metrics = gpt_path_join(out, "metrics.jsonl");
    char *final = gpt_path_join(run->folder, "final.safetensors"), *model = gpt_path_join(out, "latest/model.safetensors");
    compare_rows(expected, metrics);
    compare_weights(final, model, &config);
    gpt_folder_remove(out);
    rax_free(path);
    rax_free(command);
    rax_free(expected);
    rax_free(metrics);
    rax_free(final);
    rax_free(model);
    gpt_config_free(&config);
}

int main(void)
{
    struct CMUnitTest tests[RUNS];
    for (int i = 0; i < RUNS; i++) {
        char *name = gpt_format("%s%s%s", runs[i].folder, *runs[i].flag ? " " : "", runs[i].flag);
        tests[i] = (struct CMUnitTest){ .name = name, .test_func = test_run, .initial_state = (void *)&runs[i] };
    }
    int failed = cmocka_run_group_tests_name("golden", tests, NULL, NULL);
    for (int i = 0; i < RUNS; i++)
        rax_free((void *)tests[i].name);
    return failed;
}
