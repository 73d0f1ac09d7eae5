/* What tests of golden runs share: the rows and the weights of a run beside those that PyTorch made in float64. */
#ifndef TESTS_GOLDEN_RUNS_H
#define TESTS_GOLDEN_RUNS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "nanogpt/config.h"
#include "nanogpt/files.h"
#include "nanogpt/safetensors.h"
#include "rax.h"

/* -- JSON lines ------------------------------------------------------------------------------------------------------ */

/* The rows that have the key "loss", for cJSON_Delete. */
static cJSON *read_rows(const char *path)
{
    size_t bytes;
    char *text = gpt_file_read(path, &bytes);
    if (!text)
        fail_msg("%s", rax_error());
    cJSON *rows = cJSON_CreateArray();
    for (char *line = text, *end; (end = strchr(line, '\n')); line = end + 1) {
        *end = '\0';
        cJSON *row = cJSON_Parse(line);
        if (!row)
            fail_msg("%s: not JSON: %s", path, line);
        if (cJSON_GetObjectItem(row, "loss"))
            cJSON_AddItemToArray(rows, row);
        else
            cJSON_Delete(row);
    }
    rax_free(text);
    return rows;
}

static double number(const cJSON *row, const char *key)
{
    const cJSON *value = cJSON_GetObjectItem(row, key);
    if (!cJSON_IsNumber(value))
        fail_msg("a row has no number as %s", key);
    return value->valuedouble;
}

__attribute__((unused)) static void compare_rows(const char *expected_path, const char *got_path)
{
    cJSON *expected = read_rows(expected_path), *got = read_rows(got_path);
    assert_int_equal(cJSON_GetArraySize(got), cJSON_GetArraySize(expected));
    for (int i = 0; i < cJSON_GetArraySize(expected); i++) {
        const cJSON *a = cJSON_GetArrayItem(expected, i), *b = cJSON_GetArrayItem(got, i);
        assert_int_equal((int)number(b, "iter"), i);
        double loss = number(b, "loss") - number(a, "loss");
        double norm = number(b, "grad_norm") / number(a, "grad_norm") - 1;
        double lr = number(b, "lr") - number(a, "lr");
        if (!(fabs(loss) <= 2e-5) || !(fabs(norm) <= 1e-4) || !(fabs(lr) <= 1e-6 * number(a, "lr")))
            fail_msg("%s: iteration %d: loss is off by %.3g (2e-5 is allowed), grad_norm by %.3g of itself (1e-4), lr by %.3g", got_path, i, loss, norm, lr);
    }
    cJSON_Delete(expected);
    cJSON_Delete(got);
}

/* -- weights --------------------------------------------------------------------------------------------------------- */

/* Elements whose true gradient is 0, so that Adam normalises rounding noise: the key biases, and with one token of context all
 * of query and key. column: on the last axis, of C queries, C keys, C values. */
static bool is_noise(const char *name, int rank, int64_t column, const gpt_config *config)
{
    if (!strstr(name, ".attn.c_attn."))
        return false;
    if (config->block_size == 1)
        return column < 2 * config->n_embd;
    return rank == 1 && column >= config->n_embd && column < 2 * config->n_embd;
}

__attribute__((unused)) static void compare_weights(const char *expected_path, const char *got_path, const gpt_config *config)
{
    gpt_safetensors *expected = gpt_safetensors_open(expected_path), *got = gpt_safetensors_open(got_path);
    if (!expected || !got)
        fail_msg("%s", rax_error());
    assert_int_equal(gpt_safetensors_count(got), gpt_safetensors_count(expected));
    float noise = fmaxf(3e-3f, 3 * (float)config->learning_rate);      /* a few steps of Adam, each of which may go a learning rate far */
    for (int i = 0; i < gpt_safetensors_count(expected); i++) {
        const gpt_array *array = gpt_safetensors_at(expected, i);
        int64_t count = gpt_array_count(array), last = array->shape[array->rank - 1];
        float *a = rax_alloc(sizeof(float) * (size_t)count), *b = rax_alloc(sizeof(float) * (size_t)count);
        if (!gpt_array_read_f32(expected, array, a) || !gpt_safetensors_read_f32(got, array->name, array->rank, array->shape, b))
            fail_msg("%s", rax_error());
        for (int64_t j = 0; j < count; j++)
            if (!(fabsf(a[j] - b[j]) <= (is_noise(array->name, array->rank, j % last, config) ? noise : 1e-5f)))
                fail_msg("%s: %s: element %lld: expected %.9g, got %.9g", got_path, array->name, (long long)j, a[j], b[j]);
        rax_free(a);
        rax_free(b);
    }
    gpt_safetensors_close(expected);
    gpt_safetensors_close(got);
}

#endif
