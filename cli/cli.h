/* cli/: the program `rax`, one file a subcommand. In: the command line and the environment. Out: calls of data/, nanogpt/
 * and rax.h; results on standard output, messages on standard error, an exit status: 0, 2 for a user's mistake, 1 for a
 * failure, 130 and 143 after SIGINT and SIGTERM.
 *
 *   main.c       the table of subcommands; signals
 *   options.c    options of subcommands, those of all of them, help
 *
 * A subcommand declares its options, parses, works, and ends:
 *
 *     int cli_sample(int argc, char **argv)
 *     {
 *         double temperature = 0.8;
 *         const cli_option options[] = {
 *             { "temperature", .type = CLI_REAL, .value = &temperature, .low = 0, .high = 100, .what = "NUMBER", .help = "..." },
 *             { 0 }
 *         };
 *         const cli_usage usage = { .command = "sample", .operands = "OUT_DIR", .least = 1, .most = 1, .about = "...", .options = options };
 *         cli_line line;
 *         int status = cli_parse(&line, &usage, argc, argv);
 *         if (status == CLI_GO)
 *             status = work(&line, temperature) ? 0 : cli_fail();
 *         cli_line_free(&line);
 *         return status;
 *     }
 */
#ifndef CLI_H
#define CLI_H

#include <stdbool.h>
#include <stdint.h>

#include "data/data.h"
#include "nanogpt/config.h"
#include "rax.h"

/* -- subcommands ---------------------------------------------------------------------------------------------------- */

int cli_train(int argc, char **argv);            /* argv[0] is the subcommand's name; the result is the exit status */
int cli_sample(int argc, char **argv);
int cli_eval(int argc, char **argv);
int cli_compile(int argc, char **argv);
int cli_info(int argc, char **argv);
int cli_prepare(int argc, char **argv);
int cli_bench(int argc, char **argv);

/* -- main.c --------------------------------------------------------------------------------------------------------- */

/* Prints rax_error() on standard error and returns the exit status that goes with it. */
int cli_fail(void);

/* From this call on SIGINT, SIGTERM and SIGPIPE only set what cli_signal returns (0: none so far); before it, and when a second one
 * of the user's comes, they end the process at once. cli_signal_status is the exit status after one: 130, 143, 141. */
void cli_end_gracefully(void);
int cli_signal(void);
int cli_signal_status(void);

/* -- options.c ------------------------------------------------------------------------------------------------------ */

typedef enum { CLI_FLAG, CLI_COUNT, CLI_INTEGER, CLI_REAL, CLI_TEXT, CLI_PATH } cli_type;       /* CLI_PATH: a text that is not empty */

/* The value is a bool, int, int64_t, double, or const char * (the last two) by type; what is in it is the default. `-` and `_` in a name
 * are alike on the command line. A table ends in {0}. */
typedef struct {
    const char *name;
    char letter;                                 /* -v; 0: none */
    cli_type type;
    void *value;
    double low, high;                            /* CLI_INTEGER, CLI_REAL: inclusive */
    const char *what;                            /* stands for the value in the help */
    const char *help;
    const char *environment;                     /* gives the value where the option is absent; NULL: nothing does */
} cli_option;

typedef struct {
    const char *command, *operands, *about;      /* "train", "CONFIG", a sentence or two */
    int least, most;                             /* operands; most -1: any number */
    const cli_option *options;                   /* the subcommand's own */
    bool config_keys;                            /* every key of a configuration is an option too */
} cli_usage;

/* Of subcommands that read no configuration, which has a key of this name. */
#define CLI_DEVICE(value) { "device", 0, CLI_TEXT, value, .what = "NAME", .help = "cpu or cuda (cpu)" }

/* What was on the line, and the options that all subcommands have, from flags or the environment. */
typedef struct {
    char **operands;                             /* argv's; NULL ends them */
    int operand_count;
    gpt_setting *settings;                       /* configuration keys, in their order */
    int setting_count;
    int verbose;
    bool no_jit, tf32, help;
    int64_t threads;                             /* 0: all */
    const char *data_dir, *isa, *dump_dir;       /* NULL: not said */
    const char *cache_dir;                       /* never NULL; "": compiled code is not kept on disk */
    char *default_cache_dir;                     /* $XDG_CACHE_HOME/rax, ~/.cache/rax, or rax-cache in the working folder */
} cli_line;

/* Parses. CLI_GO: go on; otherwise the exit status, after help (0) or a message (2). The line is to be freed in any case. */
enum { CLI_GO = -1 };
int cli_parse(cli_line *line, const cli_usage *usage, int argc, char **argv);
void cli_line_free(cli_line *line);

/* The file, then the keys on the line. Its threads, where they are 0, become those of the line. */
bool cli_config_load(const cli_line *line, const char *path, gpt_config *config);

rax_settings cli_settings(const cli_line *line);         /* for rax_configure */
data_places cli_places(const cli_line *line);

#endif
