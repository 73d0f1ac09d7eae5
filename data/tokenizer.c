/* One interface to the two tokenizers, and the small JSON file that goes with tokens and says which one made them:
 *
 *     {"tokenizer": "gpt2", "vocab_size": 50257}
 *     {"tokenizer": "char", "vocab_size": 4, "code_points": [101, 104, 108, 111]}
 *
 * Characters are written as numbers, because JSON strings in C hold neither U+0000 nor bytes that are not UTF-8. */
#include "data/data.h"
#include "rax.h"

#include <cjson/cJSON.h>
#include <stdlib.h>
#include <string.h>

struct data_tokenizer {              /* one of the two */
    data_bpe *bpe;
    data_chars *chars;
};

static data_tokenizer *tokenizer_of(data_bpe *bpe, data_chars *chars)
{
    if (!bpe && !chars)
        return NULL;
    data_tokenizer *tokenizer = rax_alloc(sizeof *tokenizer);
    *tokenizer = (data_tokenizer){ bpe, chars };
    return tokenizer;
}

data_tokenizer *data_tokenizer_char(const data_text *texts, int count)
{
    return tokenizer_of(NULL, data_chars_new(texts, count));
}

data_tokenizer *data_tokenizer_gpt2_files(const char *merges_path, const char *encoder_path)
{
    return tokenizer_of(data_bpe_new(merges_path, encoder_path), NULL);
}

void data_tokenizer_free(data_tokenizer *tokenizer)
{
    if (!tokenizer)
        return;
    data_bpe_free(tokenizer->bpe);
    data_chars_free(tokenizer->chars);
    rax_free(tokenizer);
}

/* -- its file --------------------------------------------------------------------------------------------------------- */

data_writer *data_tokenizer_write(const data_tokenizer *tokenizer, const char *path)
{
    cJSON *object = cJSON_CreateObject();
    cJSON_AddStringToObject(object, "tokenizer", data_tokenizer_name(tokenizer));
    cJSON_AddNumberToObject(object, "vocab_size", data_tokenizer_vocab_size(tokenizer));
    if (tokenizer->chars)
        cJSON_AddItemToObject(object, "code_points", data_chars_to_json(tokenizer->chars));
    char *text = cJSON_PrintUnformatted(object);
    cJSON_Delete(object);
    if (!text) {
        rax_fail(RAX_FAILURE, "%s: no memory to write it", path);
        return NULL;
    }
    data_writer *writer = data_writer_open(path);
    if (writer) {
        data_writer_add(writer, text, strlen(text));
        data_writer_add(writer, "\n", 1);
    }
    free(text);
    return writer;
}

bool data_tokenizer_save(const data_tokenizer *tokenizer, const char *path)
{
    data_writer *writer = data_tokenizer_write(tokenizer, path);
    return writer && data_writer_commit(&writer, 1);
}

data_tokenizer *data_tokenizer_load(const char *path, const data_places *places)
{
    data_text file;
    if (!data_map(path, &file))
        return NULL;
    cJSON *object = cJSON_ParseWithLength(file.at, file.len);
    data_unmap(&file);

    data_tokenizer *tokenizer = NULL;
    const char *name = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(object, "tokenizer"));
    if (!object)
        rax_fail(RAX_MISTAKE, "%s: is not valid JSON", path);
    else if (name && strcmp(name, "gpt2") == 0)
        tokenizer = data_tokenizer_gpt2(places);
    else if (name && strcmp(name, "char") == 0)
        tokenizer = tokenizer_of(NULL, data_chars_from_json(cJSON_GetObjectItemCaseSensitive(object, "code_points"), path));
    else
        rax_fail(RAX_MISTAKE, "%s: tokenizer: expected \"gpt2\" or \"char\"", path);
    cJSON_Delete(object);
    return tokenizer;
}

/* -- what it answers -------------------------------------------------------------------------------------------------- */

const char *data_tokenizer_name(const data_tokenizer *tokenizer)
{
    return tokenizer->bpe ? "gpt2" : "char";
}

int data_tokenizer_vocab_size(const data_tokenizer *tokenizer)
{
    return tokenizer->bpe ? data_bpe_vocab_size(tokenizer->bpe) : data_chars_count(tokenizer->chars);
}

int data_tokenizer_end_of_text(const data_tokenizer *tokenizer)
{
    return tokenizer->bpe ? data_bpe_end_of_text(tokenizer->bpe) : -1;
}

data_text data_token_text(const data_tokenizer *tokenizer, int32_t id)
{
    if (id < 0 || id >= data_tokenizer_vocab_size(tokenizer))
        return (data_text){ NULL, 0 };
    return tokenizer->bpe ? data_bpe_text(tokenizer->bpe, id) : data_chars_text(tokenizer->chars, id);
}

/* -- encoding and decoding -------------------------------------------------------------------------------------------- */

static bool encode(data_tokenizer *tokenizer, data_text text, bool whole, data_ids *ids, size_t *used)
{
    return tokenizer->bpe ? data_bpe_encode(tokenizer->bpe, text, whole, ids, used)
                          : data_chars_encode(tokenizer->chars, text, whole, ids, used);
}

bool data_encode(data_tokenizer *tokenizer, data_text text, data_ids *ids)
{
    size_t used;
    return encode(tokenizer, text, true, ids, &used);
}

bool data_encode_part(data_tokenizer *tokenizer, data_text text, data_ids *ids, size_t *used)
{
    return encode(tokenizer, text, false, ids, used);
}

char *data_decode(const data_tokenizer *tokenizer, const int32_t *ids, size_t count, size_t *len)
{
    size_t total = 0;

    for (size_t i = 0; i < count; i++) {
        data_text token = data_token_text(tokenizer, ids[i]);
        if (!token.at) {
            rax_fail(RAX_MISTAKE, "%s tokenizer: token %zu is %d, of %d that it has", data_tokenizer_name(tokenizer), i,
                     ids[i], data_tokenizer_vocab_size(tokenizer));
            return NULL;
        }
        total += token.len;
    }
    char *text = rax_try_alloc(total + 1), *at = text;
    if (!text) {
        rax_fail(RAX_FAILURE, "%s tokenizer: no memory for %zu bytes of text", data_tokenizer_name(tokenizer), total);
        return NULL;
    }
    for (size_t i = 0; i < count; i++) {
        data_text token = data_token_text(tokenizer, ids[i]);
        memcpy(at, token.at, token.len);
        at += token.len;
    }
    if (len)
        *len = total;
    return text;
}

bool data_ids_reserve(data_ids *ids, size_t more)
{
    if (more <= ids->cap - ids->len)
        return true;
    size_t cap = ids->len + more > 2 * ids->cap ? ids->len + more : 2 * ids->cap;
    int32_t *at = cap <= SIZE_MAX / sizeof *at ? rax_try_alloc(cap * sizeof *at) : NULL;
    if (!at)
        return rax_fail(RAX_FAILURE, "no memory for %zu token ids", cap);
    if (ids->len)
        memcpy(at, ids->at, ids->len * sizeof *at);
    rax_free(ids->at);
    ids->at = at;
    ids->cap = cap;
    return true;
}

void data_ids_free(data_ids *ids)
{
    rax_free(ids->at);
    *ids = (data_ids){0};
}
