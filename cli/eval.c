/* rax eval: the loss of a trained model over a whole split, every target once. */
#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/run.h"
#include "nanogpt/train.h"

static size_t part(void *context, uint64_t k, int32_t *x, int32_t *y) { return data_loader_walk(context, k, x, y); }

/* 0 where all went well, else the exit status. */
static int eval_split(const cli_line *line, const cli_model *model, const data_tokens *tokens, const char *split)
{
    const gpt_config *config = &model->config;
    double loss;
    /* it is walked through; seed and stream are not drawn from */
    data_loader *loader = data_loader_new(tokens, DATA_RANDOM, 0, 0, config->batch_size, config->block_size);
    cli_end_gracefully();
    bool evaluated = loader && gpt_evaluate(config, model->params, part, loader, cli_signal, &loss);
    data_loader_free(loader);
    if (evaluated)
        printf("%s: iteration %lld, %s_loss %.4f over %zu targets\n", line->operands[0], (long long)model->iteration, split, loss,
               tokens->count - 1);
    return evaluated ? 0 : cli_signal() ? cli_signal_status() : cli_fail();
}

static int eval(const cli_line *line, const char *device, const char *split)
{
    cli_model model = {0};
    data_corpus corpus = {0};
    int status = 0;
    bool of_train = strcmp(split, "train") == 0;

    if (!of_train && strcmp(split, "val") != 0)
        rax_fail(RAX_MISTAKE, "--split: expected train or val, got '%s'", split), status = cli_fail();
    else if (!cli_model_open(&model, line->operands[0], device, line) || !cli_corpus_open(&corpus, &model.config, line))
        status = cli_fail();
    else if (!of_train && !corpus.val)
        rax_fail(RAX_MISTAKE, "%s: was trained without val_data", line->operands[0]), status = cli_fail();
    else
        status = eval_split(line, &model, of_train ? corpus.train : corpus.val, split);
    data_corpus_close(&corpus);
    cli_model_close(&model);
    return status;
}

int cli_eval(int argc, char **argv)
{
    const char *split = "val", *device = NULL;
    const cli_option rows[] = {
        { "split", 0, CLI_TEXT, &split, .what = "NAME", .help = "train or val (val)" },
        CLI_DEVICE(&device),
        { 0 }
    };
    const cli_usage usage = {
        .command = "eval", .operands = "OUT_DIR", .least = 1, .most = 1, .options = rows,
        .about = "Prints the mean loss of OUT_DIR's latest checkpoint, or of a checkpoint's folder, over a whole split of its corpus: the text\n"
                 "in rows of block_size tokens, every token a target once.",
    };
    cli_line line;
    int status = cli_parse(&line, &usage, argc, argv);
    if (status == CLI_GO)
        status = eval(&line, device, split);
    rax_shutdown();
    cli_line_free(&line);
    return status;
}
