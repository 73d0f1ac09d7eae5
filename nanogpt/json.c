/* JSON by cJSON, with errors that name the file and the line.
 *
 * cJSON is given what it reads with a '\0' after it, counted in the length: releases before 1.7.18 look one byte beyond the
 * end of a text that stops within an object. */
#include "nanogpt/files.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rax.h"

/* cJSON makes a '\0' of it, and so an end of the string where none was meant. NULL: there is none. */
static const char *escaped_zero(const char *text)
{
    for (const char *at = text; (at = strchr(at, '\\')) != NULL; at += 2)         /* a backslash is nowhere but in a string */
        if (strncmp(at, "\\u0000", 6) == 0)
            return at;
        else if (at[1] == '\0')
            return NULL;
    return NULL;
}

static int line_of(const char *text, const char *at)
{
    int line = 1;
    for (; text < at; text++)
        line += *text == '\n';
    return line;
}

static void tell_mistake(const char *path, const char *text, const char *stop)
{
    int shown = 0;
    if (stop > text && *stop && !strchr(" \t\r\n{}[],:", stop[-1]))              /* what should be a string, which cJSON has begun */
        stop--;
    const char *closing = stop > text && strchr("}]", stop[-1]) ? stop - 1 : stop, *before = closing;       /* which cJSON may have gone past */
    while (shown < 24 && stop[shown] >= ' ' && stop[shown] <= '~')               /* ASCII: the text may be anything */
        shown++;
    while (before > text && strchr(" \t\r\n", before[-1]))
        before--;
    if (before > text && before[-1] == ',' && (*closing == '}' || *closing == ']'))
        rax_fail(RAX_MISTAKE, "%s:%d: JSON syntax error: a comma, and nothing between it and '%c'", path, line_of(text, before - 1), *closing);
    else if (shown > 0)
        rax_fail(RAX_MISTAKE, "%s:%d: JSON syntax error at '%.*s'", path, line_of(text, stop), shown, stop);
    else
        rax_fail(RAX_MISTAKE, "%s:%d: JSON syntax error at the end of the %s", path, line_of(text, stop), *stop ? "line" : "text");
}

cJSON *gpt_json_parse(const char *path, const char *text, size_t bytes)
{
    char *copy = rax_try_alloc(bytes + 1);
    if (!copy) {
        rax_fail(RAX_FAILURE, "%s: no memory for %zu bytes of JSON", path, bytes);
        return NULL;
    }
    memcpy(copy, text, bytes);
    copy[bytes] = '\0';

    const char *stop = copy;
    cJSON *value = cJSON_ParseWithLengthOpts(copy, bytes + 1, &stop, true);
    if (value && stop != copy + bytes) {             /* a '\0' within the text */
        cJSON_Delete(value);
        value = NULL;
    }
    const char *zero = value ? escaped_zero(copy) : NULL;
    if (zero) {
        rax_fail(RAX_MISTAKE, "%s:%d: \\u0000 cannot be part of a text", path, line_of(copy, zero));
        cJSON_Delete(value);
        value = NULL;
    } else if (!value) {
        tell_mistake(path, copy, stop);
    }
    rax_free(copy);
    return value;
}

cJSON *gpt_json_read(const char *path)
{
    size_t bytes;
    char *text = gpt_file_read(path, &bytes);
    cJSON *value = text ? gpt_json_parse(path, text, bytes) : NULL;
    rax_free(text);
    return value;
}

char *gpt_json_text(const cJSON *value)
{
    char *printed = cJSON_Print(value);
    char *text = gpt_format("%s\n", printed ? printed : "null");
    cJSON_free(printed);
    return text;
}

bool gpt_json_write(const char *path, const cJSON *value)
{
    char *text = gpt_json_text(value);
    gpt_new_file *file = gpt_new_file_open(path);
    gpt_new_file_write(file, text, strlen(text));
    rax_free(text);
    return gpt_new_file_commit(file, NULL);
}

void gpt_json_number(char text[32], double value)
{
    strcpy(text, "null");
    for (int digits = 9; isfinite(value) && digits <= 17; digits++) {
        snprintf(text, 32, "%.*g", digits, value);
        if (strtod(text, NULL) == value)
            return;
    }
}

void gpt_json_add_number(cJSON *object, const char *name, double value)
{
    char text[32];
    gpt_json_number(text, value);
    cJSON_AddRawToObject(object, name, text);
}

bool gpt_json_integer(const cJSON *value, int64_t low, int64_t high, int64_t *out)
{
    /* cJSON keeps a double: beyond 2^53 it is no longer the number that was written. */
    double number = cJSON_IsNumber(value) ? value->valuedouble : NAN;
    if (!(fabs(number) <= 0x1p53) || number != floor(number) || number < (double)low || number > (double)high)
        return false;
    *out = (int64_t)number;
    return true;
}
