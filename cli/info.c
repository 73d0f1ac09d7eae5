/* rax info: the machine, the libraries, the caches and the data, as rax sees them. */
#include "cli/cli.h"

#include <stdio.h>

int cli_info(int argc, char **argv)
{
    const char *device = NULL;
    const cli_option options[] = { CLI_DEVICE(&device), { 0 } };
    const cli_usage usage = {
        .command = "info", .operands = "", .least = 0, .most = 0, .options = options,
        .about = "Prints what rax finds: CPU, instruction set, threads, memory, LLVM, BLAS and the kernel it has chosen, caches, data.",
    };
    cli_line line;
    int status = cli_parse(&line, &usage, argc, argv);
    if (status == CLI_GO) {
        rax_settings settings = cli_settings(&line);
        settings.device = device;
        if (rax_configure(&settings)) {
            data_places places = cli_places(&line);
            rax_print_info(stdout);
            printf("cache       %s\n", places.cache_folder && *places.cache_folder ? places.cache_folder : "none");
            printf("data        %s\n", places.data_folder ? places.data_folder : "fetched as needed (RAX_DATA names a folder)");
            status = 0;
        } else {
            status = cli_fail();
        }
        rax_shutdown();
    }
    cli_line_free(&line);
    return status;
}
