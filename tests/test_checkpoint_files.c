/* Checkpoints: what is written is read back; killed at any moment the writer leaves a whole one; damage is one clear line. The
 * metrics rewind. */
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/base.h"
#include "nanogpt/checkpoint_files.h"
#include "nanogpt/files.h"
#include "rax.h"
#include "tests/scratch.h"

static char out[256];

static int make_folder(void **state)
{
    int made = make_scratch(state);
    snprintf(out, sizeof out, "%s/deep/out", scratch);
    return made;
}

static int empty_out(void **state)
{
    (void)state;
    rax_error_clear();
    return !gpt_folder_remove(out);
}

static bool is_there(const char *name)
{
    struct stat found;
    char *path = gpt_path_join(out, name);
    bool there = lstat(path, &found) == 0;
    rax_free(path);
    return there;
}

static void overwrite(const char *name, const char *text)
{
    char *path = gpt_path_join(out, name);
    write_file(path, text, strlen(text));
    rax_free(path);
}

/* -- checkpoints ---------------------------------------------------------------------------------------------------- */

enum { N = 20000 };

/* A checkpoint whose every element is its iteration. */
static bool write_checkpoint(int64_t iteration)
{
    static float w[N], m[N];
    static const int64_t n = N;
    gpt_config config;
    gpt_setting settings[] = { { "dataset", "shakespeare" }, { "n_layer", "2" }, { "learning_rate", "0.1" } };

    for (int i = 0; i < N; i++)
        w[i] = m[i] = (float)iteration;
    const gpt_array model[] = { { "w", GPT_F32, 1, &n, w } };
    const gpt_array optimizer[] = { { "m.w", GPT_F32, 1, &n, m }, { "t", GPT_I64, 0, NULL, &iteration } };
    gpt_config_init(&config);
    gpt_config_override(&config, settings, 3);
    const gpt_checkpoint_state state = { iteration, 9007199254740991, "xxh3:0123", &config };
    bool written = gpt_checkpoint_write(out, &state, model, 1, optimizer, 2);
    gpt_config_free(&config);
    return written;
}

static void assert_whole(const gpt_checkpoint *checkpoint)
{
    static const int64_t n = N;
    static float w[N];
    assert_true(gpt_safetensors_read_f32(checkpoint->model, "w", 1, &n, w));
    for (int i = 0; i < N; i++)
        assert_true(w[i] == (float)checkpoint->iteration);
    assert_true(gpt_safetensors_read_f32(checkpoint->optimizer, "m.w", 1, &n, w));
    for (int i = 0; i < N; i++)
        assert_true(w[i] == (float)checkpoint->iteration);
}

static void test_write_and_open(void **state)
{
    (void)state;
    assert_true(gpt_out_dir_prepare(out));
    assert_false(is_there(".probe.tmp"));
    assert_null(gpt_checkpoint_open(out, true));
    assert_non_null(strstr(rax_error(), "deep/out: holds no checkpoint: "));

    assert_true(write_checkpoint(250));
    gpt_checkpoint *checkpoint = gpt_checkpoint_open(out, true);
    assert_non_null(checkpoint);
    assert_int_equal(checkpoint->iteration, 250);
    assert_int_equal(checkpoint->seed, 9007199254740991);
    assert_string_equal(checkpoint->tuned, "xxh3:0123");
    assert_int_equal(checkpoint->config.n_layer, 2);
    assert_true(checkpoint->config.learning_rate == 0.1);
    assert_string_equal(checkpoint->config.dataset, "shakespeare");
    assert_non_null(strstr(checkpoint->folder, "deep/out/ckpt-000250"));
    assert_whole(checkpoint);
    gpt_checkpoint_close(checkpoint);

    /* one checkpoint by its own folder, without its optimizer */
    char *path = gpt_path_join(out, "ckpt-000250");
    checkpoint = gpt_checkpoint_open(path, false);
    assert_non_null(checkpoint);
    assert_null(checkpoint->optimizer);
    gpt_checkpoint_close(checkpoint);
    rax_free(path);
}

static void test_the_newest_two_stay(void **state)
{
    (void)state;
    assert_true(gpt_folder_make(out));
    overwrite("ckpt-notes.txt", "not ours");
    for (int64_t i = 100; i <= 400; i += 100)
        assert_true(write_checkpoint(i));
    assert_false(is_there("ckpt-000100") || is_there("ckpt-000200"));
    assert_true(is_there("ckpt-000300") && is_there("ckpt-000400") && is_there("ckpt-notes.txt"));

    /* the same one again: as after a resume without an iteration */
    assert_true(write_checkpoint(400));
    gpt_checkpoint *checkpoint = gpt_checkpoint_open(out, true);
    assert_non_null(checkpoint);
    assert_whole(checkpoint);
    gpt_checkpoint_close(checkpoint);

    /* a new run in an old folder: what it writes first is the latest, though its number is lower */
    assert_true(write_checkpoint(350));
    assert_false(is_there("ckpt-000400"));
    checkpoint = gpt_checkpoint_open(out, false);
    assert_int_equal(checkpoint->iteration, 350);
    gpt_checkpoint_close(checkpoint);
    assert_true(write_checkpoint(1234567));
    assert_true(is_there("ckpt-1234567") && is_there("ckpt-000350") && !is_there("ckpt-000300"));
}

static void test_leftovers_go(void **state)
{
    (void)state;
    char *leftover = gpt_path_join(out, ".ckpt-000007.tmp/inner");
    assert_true(gpt_folder_make(leftover));
    rax_free(leftover);
    overwrite(".ckpt-000007.tmp/model.safetensors", "half");
    assert_true(write_checkpoint(8));
    assert_false(is_there(".ckpt-000007.tmp"));
    overwrite(".latest.tmp", "half");
    assert_true(write_checkpoint(9));
    assert_false(is_there(".latest.tmp"));
}

/* The writer is killed again and again at moments all over its work; after each the latest is whole. On a busy disk a whole
 * write may take longer than any of the sixty moments: then later ones are tried until there was one. */
static void test_killed_at_any_time(void **state)
{
    (void)state;
    int64_t last = 0;
    int seen = 0;
    assert_true(write_checkpoint(0));
    for (int round = 0; round < 60 || (seen == 0 && round < 100); round++) {
        pid_t writer = fork();
        assert_true(writer >= 0);
        if (writer == 0) {
            for (int64_t i = last; write_checkpoint(i); i++)
                ;
            _exit(1);
        }
        int64_t ns = 300000 + round * 700000LL + (round > 60 ? (round - 60) * 100000000LL : 0);
        struct timespec wait = { ns / 1000000000, ns % 1000000000 };
        nanosleep(&wait, NULL);
        kill(writer, SIGKILL);
        waitpid(writer, NULL, 0);

        gpt_checkpoint *checkpoint = gpt_checkpoint_open(out, true);
        if (!checkpoint)
            print_error("round %d: %s\n", round, rax_error());
        assert_non_null(checkpoint);
        assert_true(checkpoint->iteration >= last);
        seen += checkpoint->iteration > last;
        last = checkpoint->iteration;
        assert_whole(checkpoint);
        gpt_checkpoint_close(checkpoint);
    }
    assert_true(seen > 0);
    assert_true(write_checkpoint(last + 1));
    char *list = gpt_format("test -z \"$(ls -A %s | grep tmp)\" && test $(ls %s | grep -c ckpt-) -le 2", out, out);
    assert_int_equal(system(list), 0);
    rax_free(list);
}

static void test_damage(void **state)
{
    (void)state;
    static const struct { const char *name, *text, *error; } cases[] = {
        { "latest/state.json", "", "ckpt-000003/state.json:1: JSON syntax error at the end of the text" },
        { "latest/state.json", "{}", "ckpt-000003/state.json: format: expected \"rax-checkpoint\"" },
        { "latest/state.json", "[]", "ckpt-000003/state.json: format: expected \"rax-checkpoint\"" },
        { "latest/state.json", "{\"format\":\"rax-checkpoint\",\"version\":2}", "version: this rax reads version 1 alone" },
        { "latest/state.json", "{\"format\":\"rax-checkpoint\",\"version\":1,\"iteration\":-1}", "iteration: expected an integer of 0 or more" },
        { "latest/state.json", "{\"format\":\"rax-checkpoint\",\"version\":1,\"iteration\":3,\"seed\":1,\"tuned\":\"\"}", "config: is missing" },
        { "latest/state.json", "{\"format\":\"rax-checkpoint\",\"version\":1,\"iteration\":3,\"seed\":1,\"tuned\":\"\",\"config\":{\"n_layers\":2}}",
          "state.json: n_layers: there is no such key; the nearest is n_layer" },
        { "latest/model.safetensors", "", "ckpt-000003/model.safetensors: is empty" },
        { "latest/optimizer.safetensors", "\2\0\0\0\0\0\0\0{}", "optimizer.safetensors: is no safetensors file: it has 1 bytes" },
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        assert_true(write_checkpoint(3));
        overwrite(cases[i].name, cases[i].text);
        assert_null(gpt_checkpoint_open(out, true));
        assert_int_equal(rax_error_kind_of(), RAX_MISTAKE);
        if (!strstr(rax_error(), cases[i].error))
            print_error("%s\n", rax_error());
        assert_non_null(strstr(rax_error(), cases[i].error));
    }

    /* one bit of one weight */
    assert_true(write_checkpoint(3));
    char *path = gpt_path_join(out, "latest/model.safetensors");
    FILE *file = fopen(path, "r+b");
    assert_int_equal(fseek(file, -3, SEEK_END), 0);
    fputc(1, file);
    assert_int_equal(fclose(file), 0);
    rax_free(path);
    assert_null(gpt_checkpoint_open(out, true));
    assert_non_null(strstr(rax_error(), "ckpt-000003/model.safetensors: is damaged: its digest is xxh3:"));

    char *gone = gpt_path_join(out, "ckpt-000003");
    assert_true(gpt_folder_remove(gone));
    rax_free(gone);
    assert_null(gpt_checkpoint_open(out, true));
    assert_non_null(strstr(rax_error(), "deep/out/latest: names a checkpoint that is not there"));
    assert_null(gpt_checkpoint_open("/nowhere", true));
    assert_string_equal(rax_error(), "/nowhere: there is no such folder");
}

static void test_unwritable(void **state)
{
    (void)state;
    assert_true(gpt_folder_make(out));
    overwrite("file", "");
    char *within = gpt_path_join(out, "file/out"), *itself = gpt_path_join(out, "file");
    assert_false(gpt_out_dir_prepare(within));
    assert_int_equal(rax_error_kind_of(), RAX_FAILURE);
    assert_non_null(strstr(rax_error(), "file/out: cannot make the folder: Not a directory"));
    assert_false(gpt_out_dir_prepare(itself));
    rax_free(within);
    rax_free(itself);
    assert_false(gpt_out_dir_prepare("/proc/out"));
    assert_null(gpt_metrics_open("/nowhere", 0));
    assert_string_equal(rax_error(), "/nowhere/metrics.jsonl: cannot be written: No such file or directory");
    if (geteuid() != 0) {
        assert_int_equal(chmod(out, 0500), 0);
        assert_false(gpt_out_dir_prepare(out));
        assert_non_null(strstr(rax_error(), "deep/out: out_dir cannot be written to: Permission denied"));
        assert_int_equal(chmod(out, 0700), 0);
    }
}

/* -- metrics -------------------------------------------------------------------------------------------------------- */

static void assert_metrics(const char *wanted)
{
    size_t bytes;
    char *path = gpt_path_join(out, "metrics.jsonl");
    char *text = gpt_file_read(path, &bytes);
    assert_non_null(text);
    assert_string_equal(text, wanted);
    rax_free(text);
    rax_free(path);
}

static void test_metrics(void **state)
{
    (void)state;
    assert_true(gpt_out_dir_prepare(out));
    overwrite("metrics.jsonl", "{\"iter\": 0, \"loss\": \"of another run\"}\n");
    gpt_metrics *metrics = gpt_metrics_open(out, 0);
    assert_non_null(metrics);
    const gpt_metric first[] = { { "loss", (double)4.1843710f }, { "lr", 0.0002 }, { "x", 1.0 / 3 } };
    assert_null(gpt_metrics_open(out, 0));               /* two runs would take each other's checkpoints away */
    assert_non_null(strstr(rax_error(), "another run is writing there"));
    assert_int_equal(rax_error_kind_of(), RAX_MISTAKE);
    assert_true(gpt_metrics_row(metrics, 0, first, 3));
    assert_true(gpt_metrics_row(metrics, 1, (gpt_metric[]){ { "loss", NAN }, { "grad_norm", -INFINITY } }, 2));
    assert_true(gpt_metrics_row(metrics, 2, (gpt_metric[]){ { "val_loss", 2 } }, 1));
    assert_true(gpt_metrics_row(metrics, 2, (gpt_metric[]){ { "loss", 1e300 } }, 1));
    assert_true(gpt_metrics_flush(metrics));
    gpt_metrics_close(metrics);
    static const char rows[] = "{\"iter\": 0, \"loss\": 4.184370994567871, \"lr\": 0.0002, \"x\": 0.3333333333333333}\n"
                               "{\"iter\": 1, \"loss\": null, \"grad_norm\": null}\n";
    char all[512];
    snprintf(all, sizeof all, "%s{\"iter\": 2, \"val_loss\": 2}\n{\"iter\": 2, \"loss\": 1e+300}\n", rows);
    assert_metrics(all);

    /* a resume at 2: later rows go, and so do a row of nonsense and one that a kill has torn */
    strcat(all, "nonsense\n{\"iter\": 1, \"loss\": 3");
    overwrite("metrics.jsonl", all);
    metrics = gpt_metrics_open(out, 2);
    assert_non_null(metrics);
    assert_metrics(rows);
    assert_true(gpt_metrics_row(metrics, 2, (gpt_metric[]){ { "loss", 0.5 } }, 1));
    gpt_metrics_close(metrics);
    snprintf(all, sizeof all, "%s{\"iter\": 2, \"loss\": 0.5}\n", rows);
    assert_metrics(all);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_write_and_open, empty_out),
        cmocka_unit_test_setup(test_the_newest_two_stay, empty_out),
        cmocka_unit_test_setup(test_leftovers_go, empty_out),
        cmocka_unit_test_setup(test_killed_at_any_time, empty_out),
        cmocka_unit_test_setup(test_damage, empty_out),
        cmocka_unit_test_setup(test_unwritable, empty_out),
        cmocka_unit_test_setup(test_metrics, empty_out),
        cmocka_unit_test(nothing_leaks),
    };
    return cmocka_run_group_tests_name("checkpoint_files", tests, make_folder, remove_scratch);
}
