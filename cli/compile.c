/* rax compile: what the compiler makes of a graph given as text. */
#include "cli/cli.h"

int cli_compile(int argc, char **argv)
{
    const cli_option options[] = { { 0 } };
    const cli_usage usage = {
        .command = "compile", .operands = "FILE.rax", .least = 1, .most = 1, .options = options,
        .about = "Reads a graph as text, as --dump_ir DIR of a training run writes it, and prints it after each pass, then its kernels and its\n"
                 "memory plan. With --dump_ir here, LLVM IR and assembly are there beside them.",
    };
    cli_line line;
    int status = cli_parse(&line, &usage, argc, argv);
    if (status == CLI_GO) {
        rax_settings settings = cli_settings(&line);
        status = rax_configure(&settings) && rax_compile_text(line.operands[0], stdout) ? 0 : cli_fail();
        rax_shutdown();
    }
    cli_line_free(&line);
    return status;
}
