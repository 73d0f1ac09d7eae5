/* rax sample: texts from a trained model. */
#include "cli/cli.h"
#include "cli/run.h"

/* What the tokens stand for is told by where the model was trained. */
static bool sample(const cli_line *line, const char *device, cli_sampling *sampling)
{
    cli_model model;
    data_corpus corpus = {0};
    bool sampled = cli_model_open(&model, line->operands[0], device, line) && cli_tokenizer_open(&corpus, &model.config, line);
    if (sampled && !corpus.tokenizer)
        sampled = rax_fail(RAX_MISTAKE, "%s: was trained on %s, and no tokenizer.json beside that says what its tokens stand for",
                           line->operands[0], model.config.train_data);
    if (sampling->seed < 0)
        sampling->seed = model.config.seed;
    cli_end_gracefully();
    sampled = sampled && cli_print_samples(&model.model, model.params, corpus.tokenizer, sampling);
    data_corpus_close(&corpus);
    cli_model_close(&model);
    return sampled;
}

int cli_sample(int argc, char **argv)
{
    cli_sampling sampling = { .max_new_tokens = 500, .top_k = 200, .num_samples = 1, .seed = -1, .temperature = 0.8 };
    const char *device = NULL;
    const cli_option rows[] = {
        { "start", 's', CLI_TEXT, &sampling.start, .what = "TEXT", .help = "what the text begins with (a newline)" },
        { "max_new_tokens", 'n', CLI_INTEGER, &sampling.max_new_tokens, 0, 1 << 20, "N", "tokens to draw (500)", NULL },
        { "temperature", 't', CLI_REAL, &sampling.temperature, 0, 1000, "NUMBER", "below 1: likelier tokens; 0: the likeliest alone (0.8)", NULL },
        { "top_k", 'k', CLI_INTEGER, &sampling.top_k, 0, 65536, "N", "draw among the N likeliest; 0: among all (200)", NULL },
        { "seed", 0, CLI_INTEGER, &sampling.seed, 0, 9007199254740991.0, "N", "same seed, same text (the run's)", NULL },
        { "num_samples", 0, CLI_INTEGER, &sampling.num_samples, 1, 1 << 20, "N", "texts to draw (1)", NULL },
        CLI_DEVICE(&device),
        { 0 }
    };
    const cli_usage usage = {
        .command = "sample", .operands = "OUT_DIR", .least = 1, .most = 1, .options = rows,
        .about = "Prints text drawn from the model of OUT_DIR's latest checkpoint, or from a checkpoint's folder.",
    };
    cli_line line;
    int status = cli_parse(&line, &usage, argc, argv);
    if (status == CLI_GO)
        status = !sample(&line, device, &sampling) ? cli_fail() : cli_signal() ? cli_signal_status() : 0;
    rax_shutdown();
    cli_line_free(&line);
    return status;
}
