/* A token a character, nanoGPT's way: the ids are the places of the text's distinct characters in sorted order.
 *
 *     "hello"  ->  characters e h l o  ->  1 0 2 2 3
 *
 * A character is a Unicode code point. A byte b that is not part of valid UTF-8 is the character U+DC00 + b, a lone
 * surrogate, which valid UTF-8 cannot hold (Python's "surrogateescape"): so that every text has ids and comes back whole. */
#include "data/data.h"
#include "rax.h"

#include <cjson/cJSON.h>
#include <string.h>

enum { CODE_POINTS = 0x110000, ESCAPE = 0xDC00 };

struct data_chars {
    int count;
    uint32_t *code_points;           /* ascending */
    char (*bytes)[4];                /* UTF-8 of each, or the one byte of an escape */
    uint8_t *sizes;
    int32_t ascii[128];              /* id, -1: not in the set; for most text the only look-up */
};

static size_t next_char(data_text text, uint32_t *code_point)
{
    size_t size = data_utf8_char(text, code_point);
    if (size > 0)
        return size;
    *code_point = ESCAPE + (uint8_t)text.at[0];
    return 1;
}

static bool is_escape(uint32_t c) { return c >= ESCAPE + 0x80 && c <= ESCAPE + 0xFF; }

static data_chars *chars_alloc(int count)
{
    data_chars *chars = rax_alloc(sizeof *chars);
    chars->count = count;
    chars->code_points = rax_alloc(sizeof *chars->code_points * (size_t)count);
    chars->bytes = rax_alloc(sizeof *chars->bytes * (size_t)count);
    chars->sizes = rax_alloc((size_t)count);
    return chars;
}

static void fill_tables(data_chars *chars)
{
    memset(chars->ascii, -1, sizeof chars->ascii);
    for (int id = 0; id < chars->count; id++) {
        uint32_t c = chars->code_points[id];
        if (c < 128)
            chars->ascii[c] = id;
        if (is_escape(c)) {
            chars->bytes[id][0] = (char)(c - ESCAPE);
            chars->sizes[id] = 1;
        } else {
            chars->sizes[id] = (uint8_t)data_utf8_put(c, chars->bytes[id]);
        }
    }
}

static int find(const data_chars *chars, uint32_t c)
{
    if (c < 128)
        return chars->ascii[c];
    int low = 0, high = chars->count;
    while (low < high) {
        int middle = (low + high) / 2;
        if (chars->code_points[middle] < c)
            low = middle + 1;
        else
            high = middle;
    }
    return low < chars->count && chars->code_points[low] == c ? low : -1;
}

/* -- what the header promises ----------------------------------------------------------------------------------------- */

data_chars *data_chars_new(const data_text *texts, int count)
{
    uint8_t *seen = rax_alloc(CODE_POINTS);
    int distinct = 0;

    for (int i = 0; i < count; i++) {
        data_text rest = texts[i];
        while (rest.len > 0) {
            uint32_t c;
            size_t size = next_char(rest, &c);
            distinct += !seen[c];
            seen[c] = 1;
            rest.at += size, rest.len -= size;
        }
    }
    if (distinct == 0 || distinct > DATA_VOCAB_MAX) {
        rax_free(seen);
        if (distinct == 0)
            rax_fail(RAX_MISTAKE, "char tokenizer: the text is empty");
        else
            rax_fail(RAX_MISTAKE, "char tokenizer: the text has %d distinct characters; at most %d fit", distinct,
                     DATA_VOCAB_MAX);
        return NULL;
    }
    data_chars *chars = chars_alloc(distinct);
    for (uint32_t c = 0, id = 0; c < CODE_POINTS; c++)
        if (seen[c])
            chars->code_points[id++] = c;
    rax_free(seen);
    fill_tables(chars);
    return chars;
}

data_chars *data_chars_from_json(const cJSON *code_points, const char *path)
{
    int count = cJSON_IsArray(code_points) ? cJSON_GetArraySize(code_points) : 0;
    if (count < 1 || count > DATA_VOCAB_MAX) {
        rax_fail(RAX_MISTAKE, "%s: code_points: expected an array of 1 to %d numbers", path, DATA_VOCAB_MAX);
        return NULL;
    }
    data_chars *chars = chars_alloc(count);
    double before = -1;
    int id = 0;
    const cJSON *item;
    cJSON_ArrayForEach(item, code_points) {
        double c = cJSON_IsNumber(item) ? item->valuedouble : -1;
        bool fits = c > before && c < CODE_POINTS && c == (uint32_t)c;
        if (!fits || (c >= 0xD800 && c < 0xE000 && !is_escape((uint32_t)c))) {
            rax_fail(RAX_MISTAKE, "%s: code_points: item %d: expected ascending code points", path, id);
            data_chars_free(chars);
            return NULL;
        }
        chars->code_points[id++] = (uint32_t)c;
        before = c;
    }
    fill_tables(chars);
    return chars;
}

cJSON *data_chars_to_json(const data_chars *chars)
{
    cJSON *array = cJSON_CreateArray();
    for (int id = 0; id < chars->count; id++)
        cJSON_AddItemToArray(array, cJSON_CreateNumber(chars->code_points[id]));
    return array;
}

void data_chars_free(data_chars *chars)
{
    if (!chars)
        return;
    rax_free(chars->code_points);
    rax_free(chars->bytes);
    rax_free(chars->sizes);
    rax_free(chars);
}

int data_chars_count(const data_chars *chars) { return chars->count; }

data_text data_chars_text(const data_chars *chars, int id)
{
    return (data_text){ chars->bytes[id], chars->sizes[id] };
}

bool data_chars_encode(const data_chars *chars, data_text text, bool whole, data_ids *ids, size_t *used)
{
    /* Three bytes at the end may be the beginning of a character of four. */
    size_t keep = whole ? text.len : text.len < 3 ? 0 : text.len - 3;

    *used = 0;
    if (!data_ids_reserve(ids, text.len))
        return false;
    while (*used < keep) {
        uint32_t c;
        size_t size = next_char((data_text){ text.at + *used, text.len - *used }, &c);
        int id = find(chars, c);
        if (id < 0 && is_escape(c))
            return rax_fail(RAX_MISTAKE, "char tokenizer: byte 0x%02X at %zu is not among its %d characters", c - ESCAPE,
                            *used, chars->count);
        if (id < 0)
            return rax_fail(RAX_MISTAKE,
                            "char tokenizer: character '%.*s' (U+%04X) at byte %zu is not among its %d characters",
                            (int)size, c < 32 ? "?" : text.at + *used, c, *used, chars->count);
        ids->at[ids->len++] = id;
        *used += size;
    }
    return true;
}
