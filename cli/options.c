/* Options. getopt_long does the parsing; a row of a table, of the subcommand or of all of them, says what to do with a value.
 * Each name is known to getopt_long twice, with `-` and with `_`. */
#include "cli/cli.h"

#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nanogpt/files.h"

enum { COMMON = 9 };                             /* rows of fill_common, with the last */

static void fill_common(cli_option rows[COMMON], cli_line *line)
{
    const cli_option common[COMMON] = {
        { "verbose", 'v', CLI_COUNT, &line->verbose, .help = "the compile trace; -vv: every kernel; -vvv: why each was chosen" },
        { "no-jit", 0, CLI_FLAG, &line->no_jit, .help = "run by the interpreter", .environment = "RAX_NO_JIT" },
        { "threads", 0, CLI_INTEGER, &line->threads, 0, 4096, "N", "threads; 0: all the process may use", "RAX_NUM_THREADS" },
        { "isa", 0, CLI_TEXT, &line->isa, .what = "NAME", .help = "generic, avx2, avx512, avx512bf16 or amx [RAX_ISA]" },   /* which rax.h reads itself */
        { "tf32", 0, CLI_FLAG, &line->tf32, .help = "round operands of products in f32 to ten bits, for tensor cores (cuda)", .environment = "RAX_TF32" },
        { "data-dir", 0, CLI_TEXT, &line->data_dir, .what = "DIR", .help = "folder with source texts and vocabularies", .environment = "RAX_DATA" },
        { "cache-dir", 0, CLI_TEXT, &line->cache_dir, .what = "DIR", .help = "folder for compiled code and data", .environment = "RAX_CACHE_DIR" },
        { "dump-ir", 0, CLI_PATH, &line->dump_dir, .what = "DIR", .help = "write graphs, kernels, LLVM IR and assembly there" },
        { "help", 'h', CLI_FLAG, &line->help, .help = "print this" },
    };
    memcpy(rows, common, sizeof common);
}

/* -- the table for one run ------------------------------------------------------------------------------------------ */

/* Rows in the order own, common, configuration keys; a key that is also a common option (threads) has no row of its own. */
typedef struct {
    const cli_usage *usage;
    cli_option common[COMMON];
    int own;
    int names;                                   /* used in the two below */
    struct option *longs;                        /* val: 256 + row */
    char **spellings;
    char letters[64];
} table;

static const cli_option *row_of(const table *t, int row)
{
    if (row < t->own)
        return &t->usage->options[row];
    return row < t->own + COMMON ? &t->common[row - t->own] : NULL;
}

static int key_of(const table *t, int row) { return row - t->own - COMMON; }
static const char *name_of(const table *t, int row) { return row_of(t, row) ? row_of(t, row)->name : gpt_config_key(key_of(t, row)); }
static int rows_of(const table *t) { return t->own + COMMON + (t->usage->config_keys ? gpt_config_key_count() : 0); }

static bool same_name(const char *a, const char *b)
{
    for (; *a && *b; a++, b++)
        if (*a != *b && !(strchr("-_", *a) && strchr("-_", *b)))
            return false;
    return *a == *b;
}

static bool is_first_of_its_name(const table *t, int row)
{
    for (int i = 0; i < row; i++)
        if (same_name(name_of(t, i), name_of(t, row)))
            return false;
    return true;
}

static void add_spelling(table *t, int row, char from, char to)
{
    const cli_option *option = row_of(t, row);
    char *name = gpt_format("%s", name_of(t, row));
    for (char *at = name; *at; at++)
        if (*at == from)
            *at = to;
    t->spellings[t->names] = name;
    t->longs[t->names++] = (struct option){ name, option && option->type <= CLI_COUNT ? no_argument : required_argument, NULL, 256 + row };
}

static void table_init(table *t, const cli_usage *usage, cli_line *line)
{
    *t = (table){ .usage = usage };
    fill_common(t->common, line);
    while (usage->options && usage->options[t->own].name)
        t->own++;
    int rows = rows_of(t);
    t->longs = rax_alloc(sizeof *t->longs * (size_t)(2 * rows + 1));
    t->spellings = rax_alloc(sizeof *t->spellings * (size_t)(2 * rows));
    size_t letters = 0;
    t->letters[letters++] = ':';                 /* a missing value is told from an unknown option */
    for (int row = 0; row < rows; row++) {
        if (!is_first_of_its_name(t, row))
            continue;
        add_spelling(t, row, '-', '_');
        add_spelling(t, row, '_', '-');
        const cli_option *option = row_of(t, row);
        if (option && option->letter) {
            t->letters[letters++] = option->letter;
            if (option->type > CLI_COUNT)
                t->letters[letters++] = ':';
        }
    }
}

static void table_free(table *t)
{
    for (int i = 0; i < t->names; i++)
        rax_free(t->spellings[i]);
    rax_free(t->spellings);
    rax_free(t->longs);
}

/* -- help ----------------------------------------------------------------------------------------------------------- */

static void print_row(char letter, const char *name, const char *what, const char *help, const char *environment)
{
    char left[64], front[8] = "    ";
    if (letter)
        snprintf(front, sizeof front, "-%c, ", letter);
    snprintf(left, sizeof left, "%s--%s%s%s", front, name, what ? " " : "", what ? what : "");
    printf("  %-44s %s%s%s%s\n", left, help, environment ? " [" : "", environment ? environment : "", environment ? "]" : "");
}

static void print_help(const table *t)
{
    const cli_usage *usage = t->usage;
    printf("usage: rax %s %s%s[OPTION...]\n\n%s\n", usage->command, usage->operands, *usage->operands ? " " : "", usage->about);
    for (int row = 0; row < rows_of(t); row++) {
        const cli_option *option = row_of(t, row);
        if (row == 0 && t->own > 0)
            printf("\noptions (- and _ in a name are alike):\n");
        if (row == t->own)
            printf("\noptions of every subcommand:\n");
        if (key_of(t, row) == 0)
            printf("\nkeys of the configuration, in place of what the file says:\n");
        if (option) {
            print_row(option->letter, option->name, option->what, option->help, option->environment);
        } else {
            char *help = gpt_config_key_help(key_of(t, row));
            print_row(0, gpt_config_key(key_of(t, row)), gpt_config_key_values(key_of(t, row)), help, NULL);
            rax_free(help);
        }
    }
}

/* -- values --------------------------------------------------------------------------------------------------------- */

static bool set_number(const cli_option *option, const char *origin, const char *text)
{
    char *end;
    double number = strtod(text, &end);
    bool well = *text && *end == '\0' && strspn(text, "+-.0123456789eE") == strlen(text) && isfinite(number);
    bool whole = option->type == CLI_INTEGER;

    if (!well || number < option->low || number > option->high || (whole && number != floor(number)))
        return rax_fail(RAX_MISTAKE, "%s: expected %s from %.16g to %.16g, got '%s'", origin, whole ? "an integer" : "a number", option->low,
                        option->high, text);
    if (whole)
        *(int64_t *)option->value = (int64_t)number;
    else
        *(double *)option->value = number;
    return true;
}

static bool set_value(const cli_option *option, const char *origin, const char *text)
{
    switch (option->type) {
    case CLI_FLAG: *(bool *)option->value = true; return true;
    case CLI_COUNT: ++*(int *)option->value; return true;
    case CLI_INTEGER: case CLI_REAL: return set_number(option, origin, text);
    case CLI_PATH:
        if (!*text)
            return rax_fail(RAX_MISTAKE, "%s: expected a path, got ''", origin);
        /* fall through */
    case CLI_TEXT: *(const char **)option->value = text; return true;
    }
    return false;
}

/* A flag is set by any text but "" and "0". */
static bool read_environment(const table *t)
{
    for (int row = 0; row < t->own + COMMON; row++) {
        const cli_option *option = row_of(t, row);
        const char *text = option->environment ? getenv(option->environment) : NULL;
        if (!text || (text[0] == '\0' && option->type != CLI_TEXT) || (option->type == CLI_FLAG && strcmp(text, "0") == 0))
            continue;
        if (!set_value(option, option->environment, text))
            return false;
    }
    return true;
}

static bool refuse_unknown(const table *t, const char *typed)
{
    int rows = rows_of(t), length = (int)strcspn(typed, "=");
    const char **names = rax_alloc(sizeof *names * (size_t)rows);
    char *word = gpt_format("%.*s", length - 2, typed + 2);
    for (int row = 0; row < rows; row++)
        names[row] = name_of(t, row);
    rax_fail(RAX_MISTAKE, "%.*s: there is no such option of rax %s; the nearest is --%s", length, typed, t->usage->command,
             gpt_nearest(word, names, rows));
    rax_free(word);
    rax_free(names);
    return false;
}

static bool read_line(const table *t, cli_line *line, int argc, char **argv)
{
    optind = 0;                                  /* glibc: begin anew */
    opterr = 0;
    line->settings = rax_alloc(sizeof *line->settings * (size_t)argc);
    for (int got; (got = getopt_long(argc, argv, t->letters, t->longs, NULL)) != -1;) {
        if (got == ':')
            return rax_fail(RAX_MISTAKE, "%s: needs a value", argv[optind - 1]);
        if (got == '?' && optopt >= 256)
            return rax_fail(RAX_MISTAKE, "%s: takes no value", argv[optind - 1]);
        if (got == '?' && optopt)
            return rax_fail(RAX_MISTAKE, "-%c: there is no such option of rax %s", optopt, t->usage->command);
        if (got == '?')
            return refuse_unknown(t, argv[optind - 1]);

        int row = got - 256;
        if (got < 256)                           /* a letter */
            for (row = 0; row_of(t, row)->letter != got; row++)
                ;
        const cli_option *option = row_of(t, row);
        int key = t->usage->config_keys ? gpt_config_find(name_of(t, row)) : -1;
        char *origin = gpt_format("--%s", name_of(t, row));
        bool is_text = option && option->type == CLI_TEXT, is_apart = optarg && optarg == argv[optind - 1];
        bool set = is_apart && !is_text && strncmp(optarg, "--", 2) == 0
                       ? rax_fail(RAX_MISTAKE, "%s: needs a value, found the option %s", origin, optarg)
                       : !option || set_value(option, origin, optarg);
        rax_free(origin);
        if (!set)
            return false;
        if (key >= 0)
            line->settings[line->setting_count++] = (gpt_setting){ gpt_config_key(key), optarg };
    }
    line->operands = argv + optind;
    line->operand_count = argc - optind;
    return true;
}

static bool check_operands(const cli_usage *usage, const cli_line *line)
{
    for (int i = 0; i < line->operand_count; i++)
        if (!*line->operands[i])
            return rax_fail(RAX_MISTAKE, "%s: expected %s, got ''; see rax %s --help", usage->command, *usage->operands ? usage->operands : "no argument", usage->command);
    if (line->operand_count < usage->least)
        return rax_fail(RAX_MISTAKE, "%s: expected %s; see rax %s --help", usage->command, usage->operands, usage->command);
    if (usage->most >= 0 && line->operand_count > usage->most)
        return rax_fail(RAX_MISTAKE, "%s: '%s' is one argument too many; see rax %s --help", usage->command, line->operands[usage->most],
                        usage->command);
    return true;
}

static char *default_cache_dir(void)
{
    const char *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (xdg && xdg[0] == '/')                    /* the XDG specification: relative paths are to be ignored */
        return gpt_path_join(xdg, "rax");
    return home && *home ? gpt_path_join(home, ".cache/rax") : gpt_format("rax-cache");
}

int cli_parse(cli_line *line, const cli_usage *usage, int argc, char **argv)
{
    table t;
    *line = (cli_line){0};
    table_init(&t, usage, line);
    bool parsed = read_environment(&t) && read_line(&t, line, argc, argv);
    int status = CLI_GO;
    if (parsed && line->help) {
        print_help(&t);
        status = 0;
    } else if (!parsed || !check_operands(usage, line)) {
        status = cli_fail();
    }
    table_free(&t);
    line->default_cache_dir = default_cache_dir();
    if (!line->cache_dir)
        line->cache_dir = line->default_cache_dir;
    return status;
}

void cli_line_free(cli_line *line)
{
    rax_free(line->settings);
    rax_free(line->default_cache_dir);
    *line = (cli_line){0};
}

/* -- what follows from a line --------------------------------------------------------------------------------------- */

bool cli_config_load(const cli_line *line, const char *path, gpt_config *config)
{
    if (!gpt_config_load(config, path, line->settings, line->setting_count))
        return false;
    if (config->threads == 0)
        config->threads = (int)line->threads;
    return true;
}

rax_settings cli_settings(const cli_line *line)
{
    return (rax_settings){ .no_jit = line->no_jit, .verbose = line->verbose, .threads = (int)line->threads, .isa = line->isa, .tf32 = line->tf32,
                           .cache_dir = line->cache_dir, .dump_dir = line->dump_dir };
}

data_places cli_places(const cli_line *line)
{
    bool told = line->data_dir && *line->data_dir;       /* RAX_DATA= is as good as none */
    return (data_places){ .data_folder = told ? line->data_dir : NULL, .cache_folder = *line->cache_dir ? line->cache_dir : line->default_cache_dir };
}
