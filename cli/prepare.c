/* rax prepare: token files of a known corpus, into the cache, or of the user's text, into a folder. */
#include "cli/cli.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    const char *tokenizer, *out_dir;                 /* NULL: not said */
    double val_fraction;                             /* below 0: not said */
    bool offline;
} prepare_options;

static bool is_corpus(const char *name)
{
    for (int i = 0; data_corpus_names[i]; i++)
        if (strcmp(data_corpus_names[i], name) == 0)
            return true;
    return false;
}

/* What is known of a corpus is also how it is split and what its tokens are. */
static bool prepare_corpus(const char *name, const prepare_options *options, const data_places *places)
{
    data_corpus corpus;
    if (options->tokenizer || options->val_fraction >= 0)
        return rax_fail(RAX_MISTAKE, "%s: is for texts of your own; %s has its own", options->tokenizer ? "--tokenizer" : "--val_fraction", name);
    if (!data_corpus_open(&corpus, name, 65536, places))
        return false;
    printf("%s: %zu tokens to train on, %zu to evaluate on, a vocabulary of %d\n", name, corpus.train->count, corpus.val->count,
           data_tokenizer_vocab_size(corpus.tokenizer));
    printf("train_data %s\nval_data   %s\n", corpus.train->path, corpus.val->path);
    data_corpus_close(&corpus);
    return true;
}

/* On a terminal, a line that is written over. */
static bool show_progress(void *user, uint64_t done, uint64_t total)
{
    (void)user;
    if (isatty(STDERR_FILENO))
        fprintf(stderr, "\r%3.0f %% of %.1f MiB%s", total ? 100.0 * (double)done / (double)total : 100.0, (double)total / 0x1p20,
                done == total ? "\n" : "");
    return !cli_signal() || rax_fail(RAX_FAILURE, "stopped by a signal; nothing is written");
}

static bool prepare_text(const cli_line *line, const prepare_options *options, const data_places *places)
{
    const data_prepare_options prepare = {
        .tokenizer = options->tokenizer ? options->tokenizer : "gpt2", .inputs = (const char *const *)line->operands, .input_count = line->operand_count,
        .out_folder = options->out_dir, .val_fraction = options->val_fraction < 0 ? 0.1 : options->val_fraction, .progress = show_progress,
    };
    data_prepare_result result;
    cli_end_gracefully();
    if (!data_prepare(&prepare, places, &result))
        return false;
    printf("%s: %llu tokens to train on, %llu to evaluate on, a vocabulary of %d\n", options->out_dir, (unsigned long long)result.train_tokens,
           (unsigned long long)result.val_tokens, result.vocab_size);
    return true;
}

static bool is_there(const char *path) { return access(path, F_OK) == 0; }

/* Neither a file nor, by itself, a corpus. */
static bool refuse_absent(const char *name)
{
    int count = 0;
    while (data_corpus_names[count])
        count++;
    if (is_corpus(name))
        return rax_fail(RAX_MISTAKE, "%s: there is no such file; the corpus of that name stands alone, without --out_dir", name);
    return rax_fail(RAX_MISTAKE, "%s: there is no such file; the nearest corpus is %s", name, gpt_nearest(name, data_corpus_names, count));
}

static bool prepare(const cli_line *line, const prepare_options *options)
{
    data_places places = cli_places(line);
    places.offline = options->offline;
    if (!options->out_dir && line->operand_count == 1 && is_corpus(line->operands[0]))
        return prepare_corpus(line->operands[0], options, &places);
    for (int i = 0; i < line->operand_count; i++)
        if (!is_there(line->operands[i]))
            return refuse_absent(line->operands[i]);
    if (!options->out_dir)
        return rax_fail(RAX_MISTAKE, "--out_dir: is missing: where shall the tokens of %s go?", line->operands[0]);
    return prepare_text(line, options, &places);
}

int cli_prepare(int argc, char **argv)
{
    prepare_options options = { .val_fraction = -1 };
    const cli_option rows[] = {
        { "tokenizer", 0, CLI_TEXT, &options.tokenizer, .what = "NAME", .help = "gpt2 or char (gpt2)" },
        { "out_dir", 'o', CLI_PATH, &options.out_dir, .what = "DIR", .help = "where train.bin, val.bin and tokenizer.json go" },
        { "val_fraction", 0, CLI_REAL, &options.val_fraction, 0, 0.999, "NUMBER", "share of the text, from its end, to evaluate on; 0: none (0.1)", NULL },
        { "offline", 0, CLI_FLAG, &options.offline, .help = "fetch nothing" },
        { 0 }
    };
    const cli_usage usage = {
        .command = "prepare", .operands = "CORPUS|TEXT...", .least = 1, .most = -1, .options = rows,
        .about = "Makes token files: of a known corpus (shakespeare, shakespeare_char), fetched where it is missing and kept in the cache;\n"
                 "or of text files, each a document, into a folder whose files a configuration names as train_data and val_data.",
    };
    cli_line line;
    int status = cli_parse(&line, &usage, argc, argv);
    if (status == CLI_GO)
        status = prepare(&line, &options) ? 0 : cli_signal() ? cli_signal_status() : cli_fail();
    cli_line_free(&line);
    return status;
}
