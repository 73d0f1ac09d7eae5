/* Configurations: every key by file and by override, and one line that names file and key for every mistake. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cjson/cJSON.h>
#include <cmocka.h>

#include "base/base.h"
#include "nanogpt/config.h"
#include "nanogpt/files.h"
#include "rax.h"
#include "tests/scratch.h"

static char path[256];

static int make_folder(void **state)
{
    int made = make_scratch(state);
    snprintf(path, sizeof path, "%s/a.json", scratch);
    return made;
}

/* Loads the text with settings "key=value"; NULL ends them. The error without the folder's name, NULL where there is none. */
static const char *load(gpt_config *config, const char *text, ...)
{
    static char error[2048], names[8][64];
    gpt_setting settings[8];
    int count = 0;
    va_list args;

    va_start(args, text);
    for (const char *setting; (setting = va_arg(args, const char *)); count++) {
        snprintf(names[count], sizeof names[count], "%s", setting);
        char *equals = strchr(names[count], '=');
        *equals = '\0';
        settings[count] = (gpt_setting){ names[count], equals + 1 };
    }
    va_end(args);
    write_file(path, text, strlen(text));
    rax_error_clear();
    if (gpt_config_load(config, path, settings, count))
        return NULL;
    assert_int_equal(rax_error_kind_of(), RAX_MISTAKE);
    assert_null(strchr(rax_error(), '\n'));
    const char *at = strncmp(rax_error(), scratch, strlen(scratch)) == 0 ? rax_error() + strlen(scratch) + 1 : rax_error();
    snprintf(error, sizeof error, "%s", at);
    return error;
}

/* -- what is read --------------------------------------------------------------------------------------------------- */

static void test_defaults(void **state)
{
    (void)state;
    gpt_config config;
    gpt_config_init(&config);
    assert_int_equal(config.n_layer, 12);
    assert_int_equal(config.n_head, 12);
    assert_int_equal(config.n_embd, 768);
    assert_int_equal(config.block_size, 1024);
    assert_int_equal(config.vocab_size, 50304);
    assert_int_equal(config.lr_decay_iters, 600000);
    assert_true(config.learning_rate == 6e-4 && config.beta2 == 0.95 && config.grad_clip == 1.0);
    assert_int_equal(config.dtype, GPT_DTYPE_FP32);
    assert_string_equal(config.init_from, "scratch");
    assert_string_equal(config.out_dir, "out");
    assert_null(config.dataset);
    assert_true(config.given == 0);
    gpt_config_free(&config);
}

static void test_every_key_goes_both_ways(void **state)
{
    (void)state;
    static const char text[] =
        "{\"n_layer\": 3, \"n_head\": 5, \"n_embd\": 35, \"block_size\": 1, \"vocab_size\": 65536, \"bias\": true, \"dropout\": 0.125,"
        " \"dtype\": \"bf16\", \"batch_size\": 1e3, \"gradient_accumulation_steps\": 40, \"max_iters\": 2147483647,"
        " \"learning_rate\": 0.10000000000000002, \"min_lr\": 1e-300, \"warmup_iters\": 0, \"lr_decay_iters\": 7, \"weight_decay\": 0,"
        " \"beta1\": 0, \"beta2\": 0.999, \"grad_clip\": 0, \"seed\": 9007199254740991, \"train_data\": \"t.bin\","
        " \"val_data\": \"/abs/v.bin\", \"sampling\": \"sequential\", \"init_from\": \"weights\", \"out_dir\": \"../o\","
        " \"eval_interval\": 0, \"eval_iters\": 1, \"log_interval\": 0, \"checkpoint_interval\": 0, \"threads\": 2, \"device\": \"cpu\"}";
    gpt_config config, again;
    char wanted[512];

    assert_null(load(&config, text, NULL));
    assert_int_equal(config.batch_size, 1000);
    assert_int_equal(config.max_iters, 2147483647);
    assert_int_equal(config.seed, 9007199254740991);
    assert_true(config.learning_rate == 0.10000000000000002 && config.dropout == 0.125 && config.bias);
    assert_int_equal(config.dtype, GPT_DTYPE_BF16);
    assert_int_equal(config.sampling, GPT_SAMPLING_SEQUENTIAL);
    snprintf(wanted, sizeof wanted, "%s/t.bin", scratch);
    assert_string_equal(config.train_data, wanted);
    assert_string_equal(config.val_data, "/abs/v.bin");
    snprintf(wanted, sizeof wanted, "%s/weights", scratch);
    assert_string_equal(config.init_from, wanted);
    for (int i = 0; i < gpt_config_key_count(); i++)
        if (strcmp(gpt_config_key(i), "dataset") != 0)
            assert_true(gpt_config_is_given(&config, gpt_config_key(i)));

    char *first = gpt_config_text(&config);
    cJSON *json = gpt_json_parse("state", first, strlen(first));
    gpt_config_init(&again);
    assert_true(gpt_config_from_json(&again, json, "state", "/elsewhere"));
    char *second = gpt_config_text(&again);
    assert_string_equal(first, second);
    assert_true(again.learning_rate == config.learning_rate && again.min_lr == config.min_lr && again.seed == config.seed);
    cJSON_Delete(json);
    rax_free(first);
    rax_free(second);
    gpt_config_free(&config);
    gpt_config_free(&again);
}

static void test_overrides(void **state)
{
    (void)state;
    gpt_config config;
    static const char base[] = "{\"dataset\": \"shakespeare\", \"n_layer\": 6, \"out_dir\": \"out-here\"}";
    char wanted[512];

    assert_null(load(&config, base, "n_layer=2", "n-embd=24", "N_HEAD=3", "bias=true", "dtype=bf16", "seed=7", "seed=8", NULL));
    assert_int_equal(config.n_layer, 2);
    assert_int_equal(config.n_embd, 24);
    assert_int_equal(config.n_head, 3);
    assert_true(config.bias);
    assert_int_equal(config.seed, 8);
    snprintf(wanted, sizeof wanted, "%s/out-here", scratch);
    assert_string_equal(config.out_dir, wanted);
    gpt_config_free(&config);

    /* a path on the command line begins in the working folder; words stay words */
    assert_null(load(&config, base, "out_dir=mine", "init_from=resume", NULL));
    assert_string_equal(config.out_dir, "mine");
    assert_string_equal(config.init_from, "resume");
    gpt_config_free(&config);

    /* of dataset and train_data the later layer has its way */
    assert_null(load(&config, base, "train_data=t.bin", "val_data=v.bin", NULL));
    assert_null(config.dataset);
    assert_string_equal(config.train_data, "t.bin");
    gpt_config_free(&config);
    assert_null(load(&config, "{\"train_data\": \"t.bin\", \"val_data\": \"v.bin\"}", "dataset=shakespeare_char", NULL));
    assert_null(config.train_data);
    assert_null(config.val_data);
    assert_false(gpt_config_is_given(&config, "train_data"));
    gpt_config_free(&config);
}

static void test_same_model(void **state)
{
    (void)state;
    gpt_config a, b;
    gpt_config_init(&a);
    gpt_config_init(&b);
    b.batch_size = 99;
    assert_true(gpt_config_same_model(&a, &b, "out/state.json"));
    b.n_embd = 24;
    assert_false(gpt_config_same_model(&a, &b, "out/state.json"));
    assert_string_equal(rax_error(), "out/state.json: n_embd: the weights were made with 24, the configuration says 768");
    b.n_embd = 768;
    b.bias = true;
    assert_false(gpt_config_same_model(&a, &b, "out/state.json"));
    assert_string_equal(rax_error(), "out/state.json: bias: the weights were made with true, the configuration says false");
    gpt_config_free(&a);
    gpt_config_free(&b);
}

/* -- mistakes ------------------------------------------------------------------------------------------------------- */

static void test_mistakes_in_a_file(void **state)
{
    (void)state;
#define D "\"dataset\": \"shakespeare\""
    static const struct { const char *text, *error; } cases[] = {
        { "{" D ", \"n_layr\": 6}", "a.json: n_layr: there is no such key; the nearest is n_layer" },
        { "{" D ", \"n_heads\": 6}", "a.json: n_heads: there is no such key; the nearest is n_head" },
        { "{" D ", \"lr\": 6}", "a.json: lr: there is no such key; the nearest is min_lr" },
        { "{" D ", \"droupot\": 6}", "a.json: droupot: there is no such key; the nearest is dropout" },
        { "{" D ", \"n-layer\": 6}", "a.json: n-layer: there is no such key; the nearest is n_layer" },
        { "{" D ", \"\": 6}", "a.json: : there is no such key; the nearest is bias" },
        { "{" D ", \"n_layer\": \"six\"}", "a.json: n_layer: expected an integer from 1 to 65536, got \"six\"" },
        { "{" D ", \"n_layer\": 6.5}", "a.json: n_layer: expected an integer from 1 to 65536, got 6.5" },
        { "{" D ", \"n_layer\": 0}", "a.json: n_layer: expected an integer from 1 to 65536, got 0" },
        { "{" D ", \"n_layer\": 1e300}", "a.json: n_layer: expected an integer from 1 to 65536, got 1e+300" },
        { "{" D ", \"n_layer\": true}", "a.json: n_layer: expected an integer from 1 to 65536, got true" },
        { "{" D ", \"n_layer\": null}", "a.json: n_layer: expected an integer from 1 to 65536, got null" },
        { "{" D ", \"n_layer\": [6]}", "a.json: n_layer: expected an integer from 1 to 65536, got [6]" },
        { "{" D ", \"max_iters\": 2147483648}", "a.json: max_iters: expected an integer of 1 or more, got 2147483648" },
        { "{" D ", \"seed\": -1}", "a.json: seed: expected an integer from 0 to 2^53 - 1, got -1" },
        { "{" D ", \"bias\": 1}", "a.json: bias: expected true or false, got 1" },
        { "{" D ", \"dropout\": 1}", "a.json: dropout: expected a number from 0 to below 1, got 1" },
        { "{" D ", \"dropout\": -0.1}", "a.json: dropout: expected a number from 0 to below 1, got -0.1" },
        { "{" D ", \"learning_rate\": -1}", "a.json: learning_rate: expected a number of 0 or more, got -1" },
        { "{" D ", \"learning_rate\": 1e999}", "a.json: learning_rate: expected a number of 0 or more, got a number too large to hold" },
        { "{" D ", \"dtype\": \"fp16\"}", "a.json: dtype: expected \"fp32\" or \"bf16\", got \"fp16\"" },
        { "{" D ", \"device\": \"tpu\"}", "a.json: device: expected \"cpu\" or \"cuda\", got \"tpu\"" },
        { "{" D ", \"out_dir\": \"\"}", "a.json: out_dir: expected a path, got \"\"" },
        { "{" D ", \"out_dir\": 3}", "a.json: out_dir: expected a path, got 3" },
        { "{" D ", \"n_layer\": 6, \"n_layer\": 6}", "a.json: n_layer: is given twice" },
        { "{" D ", \"n_embd\": 384, \"n_head\": 5}", "a.json: n_head: 5 heads do not divide n_embd, a width of 384" },
        { "{" D ", \"train_data\": \"t\"}", "a.json: dataset and train_data: give one or the other" },
        { "{" D ", \"val_data\": \"t\"}", "a.json: dataset and val_data: give one or the other" },
        { "{\"n_layer\": 6}", "a.json: dataset: is missing; name a corpus (\"shakespeare\", \"shakespeare_char\"), or a token file as train_data" },
        { "{\n" D ",\n \"n_layer\": 6\n \"n_head\": 6}", "a.json:4: JSON syntax error at '\"n_head\": 6}'" },
        { "{\n" D ",\n \"n_layer\": six}", "a.json:3: JSON syntax error at 'six}'" },
        { "{\n" D ",\n 'n_layer': 6}", "a.json:3: JSON syntax error at ''n_layer': 6}'" },
        { "{\n" D ", // six\n \"n_layer\": 6}", "a.json:2: JSON syntax error at '// six'" },
        { "{\n" D "\n", "a.json:3: JSON syntax error at the end of the text" },
        { "{\n" D ",\n \"n_layer\": 6,\n}\n", "a.json:3: JSON syntax error: a comma, and nothing between it and '}'" },
        { "{\n" D ",\n \"n_layer\": [6, ], \"n_head\": 6}", "a.json:3: JSON syntax error: a comma, and nothing between it and ']'" },
        { "{\n" D ",\n \"dtype\": \"fp32\\u0000\"}", "a.json:3: \\u0000 cannot be part of a text" },
        { "{} x", "a.json:1: JSON syntax error at 'x'" },
        { "", "a.json:1: JSON syntax error at the end of the text" },
        { "[1]", "a.json: expected a JSON object of keys and values" },
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        gpt_config config;
        const char *error = load(&config, cases[i].text, NULL);
        gpt_config_free(&config);
        assert_non_null(error);
        assert_string_equal(error, cases[i].error);
    }
}

static void test_mistakes_on_the_command_line(void **state)
{
    (void)state;
    static const struct { const char *setting, *error; } cases[] = {
        { "n-layrs=2", "command line: n-layrs: there is no such key; the nearest is n_layer" },
        { "n_layer=two", "command line: n_layer: expected an integer from 1 to 65536, got 'two'" },
        { "n_layer=", "command line: n_layer: expected an integer from 1 to 65536, got ''" },
        { "n_layer= 2", "command line: n_layer: expected an integer from 1 to 65536, got ' 2'" },
        { "n_layer=0x2", "command line: n_layer: expected an integer from 1 to 65536, got '0x2'" },
        { "n_layer=2-", "command line: n_layer: expected an integer from 1 to 65536, got '2-'" },
        { "grad_clip=inf", "command line: grad_clip: expected a number of 0 or more, got 'inf'" },
        { "grad_clip=1e999", "command line: grad_clip: expected a number of 0 or more, got '1e999'" },
        { "bias=yes", "command line: bias: expected true or false, got 'yes'" },
        { "sampling=shuffled", "command line: sampling: expected \"random\" or \"sequential\", got 'shuffled'" },
        { "out_dir=", "command line: out_dir: expected a path, got ''" },
        { "val_data=v.bin", "command line: val_data: dataset \"shakespeare\" has a validation split of its own" },
        { "n_head=7", "command line: n_head: 7 heads do not divide n_embd, a width of 768 (default)" },
        { "n_embd=100", "default: n_head: 12 heads do not divide n_embd, a width of 100 (command line)" },
    };
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        gpt_config config;
        const char *error = load(&config, "{" D "}", cases[i].setting, NULL);
        gpt_config_free(&config);
        assert_non_null(error);
        assert_string_equal(error, cases[i].error);
    }
    gpt_config config;
    const char *error = load(&config, "{" D "}", "dataset=x", "train_data=y", NULL);
    gpt_config_free(&config);
    assert_string_equal(error, "command line: dataset and train_data: give one or the other");
    error = load(&config, "{" D ", \"n_head\": 6, \"n_embd\": 384}", "n_embd=100", NULL);
    gpt_config_free(&config);
    assert_string_equal(error, "a.json: n_head: 6 heads do not divide n_embd, a width of 100 (command line)");
    error = load(&config, "{" D ", \"n_head\": 6, \"n_embd\": 384}", "n_embd=100", "n_head=7", NULL);
    gpt_config_free(&config);
    assert_string_equal(error, "command line: n_head: 7 heads do not divide n_embd, a width of 100");
}

static void test_no_file(void **state)
{
    (void)state;
    gpt_config config;
    assert_false(gpt_config_load(&config, "/nowhere/b.json", NULL, 0));
    assert_string_equal(rax_error(), "/nowhere/b.json: cannot be read: No such file or directory");
    gpt_config_free(&config);
    assert_false(gpt_config_load(&config, scratch, NULL, 0));
    assert_non_null(strstr(rax_error(), ": is not a file"));
    gpt_config_free(&config);
}

/* Whatever one byte becomes, the file is read or refused; the sanitizers watch. */
static void test_damaged_bytes(void **state)
{
    (void)state;
    static const char text[] = "{\"dataset\": \"shakespeare\", \"n_layer\": 6, \"dropout\": 0.25, \"bias\": true, \"out_dir\": \"o\\u00e9\"}";
    for (size_t i = 0; i < sizeof text - 1; i++)
        for (int byte = 0; byte < 256; byte++) {
            char damaged[sizeof text];
            memcpy(damaged, text, sizeof text);
            damaged[i] = (char)byte;
            cJSON *json = gpt_json_parse("a.json", damaged, sizeof text - 1);
            gpt_config config;
            gpt_config_init(&config);
            if (json)
                gpt_config_from_json(&config, json, "a.json", ".");
            gpt_config_free(&config);
            cJSON_Delete(json);
        }
    for (size_t bytes = 0; bytes < sizeof text - 1; bytes++)
        assert_null(gpt_json_parse("a.json", text, bytes));
}

static void test_help(void **state)
{
    (void)state;
    for (int i = 0; i < gpt_config_key_count(); i++) {
        char *help = gpt_config_key_help(i);
        assert_true(strlen(help) > 10 && strlen(gpt_config_key_values(i)) > 0);
        rax_free(help);
    }
    char *help = gpt_config_key_help(gpt_config_find("dtype"));
    assert_string_equal(help, "fp32, bf16: operands of matmuls and attention (fp32)");
    rax_free(help);
}

/* -- what the repository ships, and the golden runs ----------------------------------------------------------------- */

static void test_shipped_configurations(void **state)
{
    (void)state;
    static const char *const paths[] = { "configs/shakespeare.json", "configs/shakespeare_char.json", "configs/shakespeare_char_cpu.json", "configs/gpt2.json" };
    for (size_t i = 0; i < COUNT_OF(paths); i++) {
        gpt_config config;
        bool loaded = gpt_config_load(&config, paths[i], NULL, 0);
        if (!loaded)
            print_error("%s\n", rax_error());
        assert_true(loaded);
        gpt_config_free(&config);
    }
}

static void test_golden_configurations(void **state)
{
    (void)state;
    static const char *const paths[] = { "../shared/golden/tiny/config.json", "../shared/golden/tiny-nobias/config.json" };
    if (access(paths[0], R_OK) != 0)
        skip();
    for (size_t i = 0; i < COUNT_OF(paths); i++) {
        gpt_config config;
        assert_true(gpt_config_load(&config, paths[i], NULL, 0));
        assert_int_equal(config.sampling, GPT_SAMPLING_SEQUENTIAL);
        assert_int_equal(access(config.train_data, R_OK), 0);
        assert_int_equal(access(config.init_from, R_OK), 0);
        gpt_config_free(&config);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_every_key_goes_both_ways),
        cmocka_unit_test(test_overrides),
        cmocka_unit_test(test_same_model),
        cmocka_unit_test(test_mistakes_in_a_file),
        cmocka_unit_test(test_mistakes_on_the_command_line),
        cmocka_unit_test(test_no_file),
        cmocka_unit_test(test_damaged_bytes),
        cmocka_unit_test(test_help),
        cmocka_unit_test(test_shipped_configurations),
        cmocka_unit_test(test_golden_configurations),
        cmocka_unit_test(nothing_leaks),
    };
    return cmocka_run_group_tests_name("config", tests, make_folder, remove_scratch);
}
