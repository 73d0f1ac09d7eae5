/* The program: finds the subcommand and runs it. */
#include "cli/cli.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const struct { const char *name, *help; int (*run)(int argc, char **argv); } commands[] = {
    { "train", "train a GPT from a configuration", cli_train },
    { "sample", "print text drawn from a trained model", cli_sample },
    { "eval", "the loss of a trained model over a whole split", cli_eval },
    { "prepare", "make token files of a known corpus or of your own text", cli_prepare },
    { "compile", "print what the compiler makes of a graph", cli_compile },
    { "info", "print what rax finds on this machine", cli_info },
    { "bench", "measure this machine, and kernels and training steps on it", cli_bench },
};
enum { COMMANDS = sizeof commands / sizeof commands[0] };

/* -- signals -------------------------------------------------------------------------------------------------------- */

static volatile sig_atomic_t caught, graceful;

static void on_signal(int number)
{
    if (!graceful || (caught && number != SIGPIPE))          /* a pipe that nobody reads from tells so at each line */
        _exit(128 + number);
    caught = number;
}

void cli_end_gracefully(void) { graceful = 1; }
int cli_signal(void) { return caught; }
int cli_signal_status(void) { return 128 + caught; }

/* Token files and weights are mapped. */
static void on_file_cut_short(int number)
{
    static const char line[] = "rax: a file that is being read was cut short, or its disk fails: token files and weights have to stay as they are\n";
    (void)number;
    _exit(write(STDERR_FILENO, line, sizeof line - 1) < 0 ? 128 + SIGBUS : RAX_FAILURE);
}

static void catch_signals(void)
{
    struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_RESTART };
    signal(SIGBUS, on_file_cut_short);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGPIPE, &action, NULL);
    signal(SIGXFSZ, SIG_IGN);                    /* a file beyond the process's limit is then an error of write, as a full disk is */
}

/* -- the command line ----------------------------------------------------------------------------------------------- */

int cli_fail(void)
{
    fflush(stdout);
    fprintf(stderr, "rax: %s\n", rax_error());
    return rax_error_kind_of() == RAX_FAILURE ? RAX_FAILURE : RAX_MISTAKE;
}

static void print_help(FILE *out)
{
    fprintf(out, "usage: rax SUBCOMMAND [ARGUMENT...]\n\nA tracing JIT compiler for tensor programs, and the GPT trainer built on it.\n\n");
    for (int i = 0; i < COMMANDS; i++)
        fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].help);
    fprintf(out, "\nrax SUBCOMMAND --help says more; rax --version prints the version.\n"
                 "Exit status: 0; 1 where the machine fails (memory, a disk, a device); 2 for a mistake (an option, a key, a file that is not there);\n"
                 "128 and the number of the signal that ended it.\n");
}

static int dispatch(int argc, char **argv)
{
    const char *names[COMMANDS];

    if (argc < 2) {
        print_help(stderr);
        return RAX_MISTAKE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0) {
        print_help(stdout);
        return 0;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("rax %s\n", RAX_VERSION);
        return 0;
    }
    if (argv[1][0] == '-') {
        rax_fail(RAX_MISTAKE, "%s: a subcommand comes first, then its options; see rax --help", argv[1]);
        return cli_fail();
    }
    for (int i = 0; i < COMMANDS; i++) {
        if (strcmp(argv[1], commands[i].name) == 0)
            return commands[i].run(argc - 1, argv + 1);
        names[i] = commands[i].name;
    }
    rax_fail(RAX_MISTAKE, "%s: there is no such subcommand; the nearest is %s", argv[1], gpt_nearest(argv[1], names, COMMANDS));
    return cli_fail();
}

int main(int argc, char **argv)
{
    catch_signals();
    int status = dispatch(argc, argv);
    errno = 0;
    if ((fflush(stdout) != 0 || ferror(stdout)) && status == 0) {             /* ferror: an earlier flush failed */
        rax_fail(RAX_FAILURE, "standard output: cannot be written%s%s", errno ? ": " : "", errno ? strerror(errno) : "");
        return cli_fail();
    }
    return status;
}
