/* rax train: a training run from a configuration, to its end or a signal. */
#include <stdio.h>

#include "bench/bench.h"
#include "cli/cli.h"
#include "cli/profile.h"
#include "cli/run.h"
#include "nanogpt/train.h"

/* -- batches for the trainer, from data/ ------------------------------------------------------------------------------ */

typedef struct { data_loader *train, *val; } loaders;

static void train_batch(void *context, uint64_t m, int32_t *x, int32_t *y)
{
    data_loader_batch(((loaders *)context)->train, m, x, y);
}

static void val_batch(void *context, uint64_t m, int32_t *x, int32_t *y)
{
    data_loader_batch(((loaders *)context)->val, m, x, y);
}

static size_t val_part(void *context, uint64_t k, int32_t *x, int32_t *y)
{
    return data_loader_walk(((loaders *)context)->val, k, x, y);
}

/* val is opened only where it will be used: a file too short for a batch is then no mistake. */
static bool open_loaders(loaders *l, const data_corpus *corpus, const gpt_config *config)
{
    const int B = config->batch_size, T = config->block_size;
    const data_order order = config->sampling == GPT_SAMPLING_RANDOM ? DATA_RANDOM : DATA_SEQUENTIAL;
    const uint64_t seed = (uint64_t)config->seed;

    l->train = data_loader_new(corpus->train, order, seed, DATA_STREAM_TRAIN, B, T);
    if (corpus->val && config->eval_interval > 0)
        l->val = data_loader_new(corpus->val, DATA_RANDOM, seed, DATA_STREAM_EVAL_VAL, B, T);
    return l->train && (l->val || !corpus->val || config->eval_interval == 0);
}

static void close_loaders(loaders *l)
{
    data_loader_free(l->train);
    data_loader_free(l->val);
}

/* -- the run ---------------------------------------------------------------------------------------------------------- */

static bool print_samples(const gpt_config *config, const gpt_trainer *trainer, const data_corpus *corpus)
{
    const cli_sampling sampling = { .max_new_tokens = 200, .temperature = 0.8, .top_k = 200,
                                    .num_samples = 2, .seed = config->seed };
    const gpt_model_config model = gpt_model_of(config);
    return cli_print_samples(&model, gpt_trainer_params(trainer), corpus->tokenizer, &sampling);
}

/* What is told of the run's programs at its end. */
typedef struct { bool table; const char *trace; cli_trace *file; } profiling;
enum { TRACED_RUNS = 3 };

static void show_function(rax_fn *fn, const profiling *wanted, const rax_peak *peak)
{
    const rax_profile *profile;
    for (int i = 0; (profile = rax_profile_of(fn, i)) != NULL; i++) {
        if (wanted->table)
            cli_print_profile(stdout, profile, peak);
        if (wanted->file)
            cli_trace_add(wanted->file, profile);
    }
}

/* The machine is measured last: what else runs on it is then most like what ran beside the steps. */
static bool show_profile(const gpt_trainer *trainer, const profiling *wanted)
{
    rax_peak peak = {0};
    if (wanted->table && !rax_profile_of(gpt_trainer_train_step(trainer), 0))
        printf("\nno profile: what ran the steps is not timed kernel by kernel\n");
    if (wanted->table && rax_profile_of(gpt_trainer_train_step(trainer), 0)) {
        if (!rax_measure_peak(&peak))
            return false;
        printf("\n");
        bench_print_peak(stdout, &peak);
    }
    show_function(gpt_trainer_train_step(trainer), wanted, &peak);
    show_function(gpt_trainer_eval_step(trainer), wanted, &peak);
    return true;
}

static bool train(const gpt_config *config, const data_corpus *corpus, loaders *l, const profiling *wanted)
{
    gpt_batches batches = { .context = l, .train = train_batch, .val = l->val ? val_batch : NULL, .val_part = val_part };
    gpt_trainer *trainer = gpt_trainer_new(config, &batches);
    if (trainer && gpt_trainer_warning(trainer))
        fprintf(stderr, "rax: warning: %s\n", gpt_trainer_warning(trainer));
    cli_end_gracefully();
    bool trained = trainer && gpt_trainer_run(trainer, cli_signal);
    if (trained && cli_signal() != 0)
        fprintf(stderr, "rax: stopped by a signal: %s has a checkpoint, and --init_from=resume goes on from it\n", config->out_dir);
    trained = trained && (!corpus->tokenizer || cli_signal() != 0 || print_samples(config, trainer, corpus)) && show_profile(trainer, wanted);
    gpt_trainer_free(trainer);
    return trained;
}

/* The file is opened first: a run of hours does not end in a path that cannot be written. */
static bool run(const cli_line *line, gpt_config *config, profiling *wanted)
{
    data_corpus corpus = {0};
    loaders l = {0};
    rax_settings settings = cli_settings(line);

    if (!cli_config_load(line, line->operands[0], config))
        return false;
    settings.threads = config->threads;
    settings.device = config->device == GPT_DEVICE_CUDA ? "cuda" : "cpu";
    settings.profile = wanted->table || wanted->trace;
    settings.trace_runs = wanted->trace ? TRACED_RUNS : 0;
    if (wanted->trace && !(wanted->file = cli_trace_new(wanted->trace)))
        return false;
    bool trained = rax_configure(&settings) && cli_corpus_open(&corpus, config, line) && open_loaders(&l, &corpus, config) &&
                   train(config, &corpus, &l, wanted);
    if (wanted->file)
        trained = cli_trace_end(wanted->file, trained) && trained;
    close_loaders(&l);
    data_corpus_close(&corpus);
    return trained;
}

int cli_train(int argc, char **argv)
{
    profiling wanted = {0};
    const cli_option rows[] = {
        { "profile", 0, CLI_FLAG, &wanted.table, .help = "at the end, where the time of each program went, kernel by kernel" },
        { "trace", 0, CLI_PATH, &wanted.trace, .what = "FILE", .help = "write when each thread did what, in a few iterations, for Perfetto" },
        { 0 }
    };
    const cli_usage usage = {
        .command = "train", .operands = "CONFIG", .least = 1, .most = 1, .config_keys = true, .options = rows,
        .about = "Trains a GPT. CONFIG is a file of JSON; any of its keys can be given as an option too. Iterations go to standard output and\n"
                 "OUT_DIR/metrics.jsonl, checkpoints to OUT_DIR. After SIGINT or SIGTERM the iteration is finished and a checkpoint written;\n"
                 "--init_from=resume goes on from it.",
    };
    gpt_config config = {0};
    cli_line line;
    int status = cli_parse(&line, &usage, argc, argv);
    if (status == CLI_GO)
        status = !run(&line, &config, &wanted) ? cli_fail() : cli_signal() ? cli_signal_status() : 0;
    gpt_config_free(&config);
    rax_shutdown();
    cli_line_free(&line);
    return status;
}
