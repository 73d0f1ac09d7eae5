/* rax bench: what the machine can do, and what each kind of kernel makes of it. */
#include "bench/bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "nanogpt/files.h"

typedef struct { const char *workloads, *dtypes, *compare, *device, *config; bool json, tune; int64_t repeats; double sample_ms; } request;

static const char every_workload[] = "nano,baby,mini,gpt2,gpt2l";

static void show(bench *b, const bench_result *result) { bench_print_row(result, b->context); }

/* -- what was asked for ------------------------------------------------------------------------------------------------ */

/* Sets chosen[i] where names[i] stands in the list, which commas part. */
static bool choose(const char *option, const char *list, int n, const char *const *names, bool *chosen)
{
    char *copy = gpt_format("%s", list), *rest = copy;
    bool known = true;
    for (char *word; known && (word = strtok_r(rest, ",", &rest)) != NULL;) {
        int i = 0;
        while (i < n && strcmp(names[i], word) != 0)
            i++;
        if (i == n)
            known = rax_fail(RAX_MISTAKE, "%s: there is no '%s'; the nearest is %s", option, word, gpt_nearest(word, names, n));
        else
            chosen[i] = true;
    }
    rax_free(copy);
    return known;
}

static bool choose_all(bench *b, const request *wanted, const cli_line *line, bool *groups)
{
    static const char *const dtypes[] = { "f32", "bf16" };
    const char *workloads[BENCH_WORKLOADS];
    const char **names = rax_alloc(sizeof *names * (size_t)bench_group_count);
    bool dtype[2] = { false, false }, known = true;
    for (int i = 0; i < BENCH_WORKLOADS; i++)
        workloads[i] = bench_workloads[i].name;
    for (int i = 0; i < bench_group_count; i++) {
        names[i] = bench_groups[i].name;
        groups[i] = line->operand_count == 0 && !bench_groups[i].asked && !wanted->config;
        groups[i] |= wanted->config && strcmp(bench_groups[i].name, "step") == 0;
    }
    for (int i = 0; known && i < line->operand_count; i++) {
        bool only_peak = strcmp(line->operands[i], "peak") == 0;      /* which is always measured */
        known = only_peak || choose("NAME", line->operands[i], bench_group_count, names, groups);
    }
    bool of_workloads = wanted->workloads != every_workload || !wanted->config;
    known = known && choose("--workloads", of_workloads ? wanted->workloads : "", BENCH_WORKLOADS, workloads, b->workload) &&
            choose("--dtypes", wanted->dtypes, 2, dtypes, dtype);
    b->f32 = dtype[0];
    b->bf16 = dtype[1];
    rax_free(names);
    return known;
}

/* -- the run --------------------------------------------------------------------------------------------------------------- */

static bool run_groups(bench *b, const bool *groups)
{
    bool done = true;
    for (int i = 0; done && i < bench_group_count; i++)
        if (groups[i] && !b->stop())
            done = bench_groups[i].run(b);
    return done;
}

static bool run(const cli_line *line, const request *wanted)
{
    bench b = { .settings = cli_settings(line), .repeats = (int)wanted->repeats, .sample_ms = wanted->sample_ms, .stop = cli_signal };
    bool *groups = rax_alloc(sizeof *groups * (size_t)bench_group_count);
    bench_baseline *baseline = NULL;
    gpt_config config = {0};
    b.settings.quiet = b.settings.verbose == 0;
    b.settings.device = wanted->device;
    b.settings.tune = wanted->tune;
    b.config = wanted->config ? &config : NULL;
    bool done = (!wanted->config || gpt_config_load(&config, wanted->config, NULL, 0)) && choose_all(&b, wanted, line, groups) &&
                (!wanted->compare || (baseline = bench_baseline_open(wanted->compare))) &&
                rax_configure(&b.settings) && rax_measure_peak(&b.peak);
    if (done && !wanted->json) {
        b.show = show;
        b.context = baseline;
        bench_print_head(&b, baseline);
    }
    cli_end_gracefully();
    done = done && run_groups(&b, groups);
    if (done && wanted->json)
        bench_print_json(&b);
    bench_baseline_free(baseline);
    gpt_config_free(&config);
    rax_free(b.results);
    rax_free(groups);
    return done;
}

int cli_bench(int argc, char **argv)
{
    request wanted = { .workloads = every_workload, .dtypes = "f32,bf16", .repeats = 9, .sample_ms = 5 };
    const cli_option rows[] = {
        { "workloads", 'w', CLI_TEXT, &wanted.workloads, .what = "LIST", .help = "whose shapes (nano,baby,mini,gpt2,gpt2l)" },
        { "dtypes", 'd', CLI_TEXT, &wanted.dtypes, .what = "LIST", .help = "of products, attention and steps (f32,bf16)" },
        { "repeats", 'r', CLI_INTEGER, &wanted.repeats, 1, 1000, "N", "samples of each case, all in turn (9)", NULL },
        { "sample_ms", 0, CLI_REAL, &wanted.sample_ms, 0, 10000, "MS", "a sample is as many calls as take so long, at least one (5)", NULL },
        { "json", 0, CLI_FLAG, &wanted.json, .help = "print JSON, at the end, in place of the table" },
        { "compare", 'c', CLI_PATH, &wanted.compare, .what = "OLD.json", .help = "show how each case has changed since" },
        { "config", 0, CLI_PATH, &wanted.config, .what = "FILE", .help = "measure the step of a configuration, and of named workloads" },
        { "tune", 0, CLI_FLAG, &wanted.tune, .help = "time the algorithms for each product and keep the fastest for all later runs (cuda)" },
        CLI_DEVICE(&wanted.device),
        { 0 }
    };
    char *about = NULL;
    size_t length = 0;
    FILE *text = open_memstream(&about, &length);
    fprintf(text, "Measures the machine's peak, then what is named, or all but whole steps: medians and quartiles of samples in turn, and the share of\n"
                  "what bounds each case. Names:\n");
    for (int i = 0; i < bench_group_count; i++)
        fprintf(text, "\n  %-14s %s", bench_groups[i].name, bench_groups[i].help);
    fprintf(text, "\n  %-14s %s", "peak", "the machine alone");
    fclose(text);
    const cli_usage usage = { .command = "bench", .operands = "[NAME...]", .least = 0, .most = -1, .options = rows, .about = about };
    cli_line line;
    int status = cli_parse(&line, &usage, argc, argv);
    if (status == CLI_GO)
        status = !run(&line, &wanted) ? cli_fail() : cli_signal() ? cli_signal_status() : 0;
    rax_shutdown();
    cli_line_free(&line);
    free(about);
    return status;
}
