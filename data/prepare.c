/* Text files to token files. Inputs are mapped and go through the tokenizer in windows of a MiB, which end where no later
 * text can change the ids before: the result is that of the whole text at once, whatever its size. */
#include "data/data.h"
#include "rax.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { WINDOW_BYTES = 1 << 20 };

typedef struct {
    const data_prepare_options *options;
    data_tokenizer *tokenizer;
    data_ids ids;                    /* of the window at hand */
    uint64_t done, total;            /* bytes of input */
} job;

typedef struct {
    data_writer *writer;             /* NULL: this part of the split is not wanted */
    uint64_t tokens;
} output;

static bool write_ids(output *out, const data_ids *ids)
{
    uint16_t block[4096];

    for (size_t at = 0; at < ids->len;) {
        size_t n = 0;
        while (n < 4096 && at < ids->len)
            block[n++] = (uint16_t)ids->at[at++];
        if (!data_writer_add(out->writer, block, n * sizeof *block))
            return false;
    }
    out->tokens += ids->len;
    return true;
}

static bool write_end_of_text(output *out, int id)
{
    int32_t at[1] = { id };
    return write_ids(out, &(data_ids){ at, 1, 1 });
}

/* One document, or the part of it on one side of the split. */
static bool write_text(job *j, output *out, data_text text)
{
    size_t window = WINDOW_BYTES;
    int separator = data_tokenizer_end_of_text(j->tokenizer);

    if (text.len > 0 && out->tokens > 0 && separator >= 0 && !write_end_of_text(out, separator))
        return false;
    while (text.len > 0) {
        bool whole = text.len <= window;
        size_t used = text.len;
        j->ids.len = 0;
        if (whole ? !data_encode(j->tokenizer, text, &j->ids)
                  : !data_encode_part(j->tokenizer, (data_text){ text.at, window }, &j->ids, &used))
            return false;
        if (used == 0) {                                 /* one word fills the window */
            window *= 2;
            continue;
        }
        window = WINDOW_BYTES;
        if (!write_ids(out, &j->ids))
            return false;
        text.at += used, text.len -= used;
        j->done += used;
        if (j->options->progress && !j->options->progress(j->options->user, j->done, j->total))
            return rax_fail(RAX_FAILURE, "%s: stopped; nothing was written", j->options->out_folder);
    }
    return true;
}

/* Moves a cut back to where a character begins. Four bytes that all continue are no UTF-8, and are cut as they come. */
static size_t character_at(data_text text, size_t cut)
{
    for (size_t back = 0; back < 4 && back <= cut; back++)
        if (cut - back == text.len || ((uint8_t)text.at[cut - back] & 0xC0) != 0x80)
            return cut - back;
    return cut;
}

static bool write_split(job *j, const data_text *texts, output *train, output *val)
{
    uint64_t cut = val->writer ? (uint64_t)((double)j->total * (1 - j->options->val_fraction)) : j->total;

    for (int i = 0; i < j->options->input_count; i++) {
        data_text text = texts[i];
        size_t first = cut < text.len ? character_at(text, (size_t)cut) : text.len;
        cut -= cut < text.len ? cut : text.len;
        if (!write_text(j, train, (data_text){ text.at, first }) ||
            !write_text(j, val, (data_text){ text.at + first, text.len - first }))
            return false;
    }
    if (train->tokens == 0 || (val->writer && val->tokens == 0))
        return rax_fail(RAX_MISTAKE, "%s: %llu bytes of text with val_fraction %g leave nothing for %s",
                        j->options->inputs[0], (unsigned long long)j->total, j->options->val_fraction,
                        train->tokens ? "validation" : "training");
    return true;
}

static bool write_files(job *j, const data_text *texts, data_prepare_result *result)
{
    const char *folder = j->options->out_folder;
    if (!data_make_folders(folder))
        return false;
    char *train_path = data_format("%s/train.bin", folder), *val_path = data_format("%s/val.bin", folder);
    char *tokenizer_path = data_format("%s/tokenizer.json", folder);
    bool wants_val = j->options->val_fraction > 0;
    enum { TRAIN, VAL, TOKENIZER, FILES };
    data_writer *writers[FILES] = {0};

    bool ok = (writers[TRAIN] = data_writer_open(train_path)) != NULL;
    ok = ok && (!wants_val || (writers[VAL] = data_writer_open(val_path)) != NULL);
    ok = ok && (writers[TOKENIZER] = data_tokenizer_write(j->tokenizer, tokenizer_path)) != NULL;
    output train = { writers[TRAIN], 0 }, val = { writers[VAL], 0 };
    if (ok && write_split(j, texts, &train, &val)) {
        ok = data_writer_commit(writers, FILES);
        if (ok && !wants_val)
            unlink(val_path);                            /* of an earlier time, with other tokens perhaps */
    } else {
        ok = false;
        for (int i = 0; i < FILES; i++)
            data_writer_abandon(writers[i]);
    }
    *result = (data_prepare_result){ train.tokens, val.tokens, data_tokenizer_vocab_size(j->tokenizer) };
    rax_free(train_path);
    rax_free(val_path);
    rax_free(tokenizer_path);
    return ok;
}

static data_tokenizer *tokenizer_named(const char *name, const data_text *texts, int count, const data_places *places)
{
    if (strcmp(name, "gpt2") == 0)
        return data_tokenizer_gpt2(places);
    if (strcmp(name, "char") == 0)
        return data_tokenizer_char(texts, count);
    rax_fail(RAX_MISTAKE, "tokenizer: expected gpt2 or char, found '%s'", name);
    return NULL;
}

bool data_prepare(const data_prepare_options *options, const data_places *places, data_prepare_result *result)
{
    if (options->input_count < 1)
        return rax_fail(RAX_MISTAKE, "input: expected at least one text file");
    if (!(options->val_fraction >= 0 && options->val_fraction < 1))
        return rax_fail(RAX_MISTAKE, "val_fraction: expected 0 <= x < 1, found %g", options->val_fraction);

    job j = { .options = options };
    data_text *texts = rax_alloc(sizeof *texts * (size_t)options->input_count);
    bool ok = true;
    for (int i = 0; i < options->input_count && ok; i++) {
        ok = data_map(options->inputs[i], &texts[i]);
        j.total += texts[i].len;
    }
    if (ok && j.total == 0)
        ok = rax_fail(RAX_MISTAKE, "%s: is empty", options->inputs[0]);
    if (ok) {
        j.tokenizer = tokenizer_named(options->tokenizer, texts, options->input_count, places);
        ok = j.tokenizer && write_files(&j, texts, result);
    }
    data_ids_free(&j.ids);
    data_tokenizer_free(j.tokenizer);
    for (int i = 0; i < options->input_count; i++)
        data_unmap(&texts[i]);
    rax_free(texts);
    return ok;
}
