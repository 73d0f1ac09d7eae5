/* The training loop. An iteration's order is nanoGPT's: evaluate where it is due, then update, then log, then checkpoint
 * where it is due. A checkpoint's number is the count of updates made, which is the next iteration; rows of metrics from that
 * iteration on are made again by the run that resumes there. */
#include "nanogpt/train.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "nanogpt/checkpoint_files.h"
#include "nanogpt/files.h"
#include "nanogpt/progress.h"
#include "nanogpt/train_step.h"
#include "nanogpt/weights.h"

/* -- evaluation ------------------------------------------------------------------------------------------------------- */

/* The evaluation step with room for its batch. */
typedef struct {
    rax_fn *step;
    rax_tensor x, y, loss;            /* i32[B,T] twice, f32[] */
    gpt_model_config model;
} evaluator;

static bool evaluator_open(evaluator *e, const gpt_config *config)
{
    rax_shape shape = RAX_SHAPE(config->batch_size, config->block_size);
    *e = (evaluator){ .step = gpt_eval_step_new(), .x = rax_tensor_new(RAX_I32, shape), .y = rax_tensor_new(RAX_I32, shape),
                      .model = gpt_model_of(config) };
    return e->step && rax_is_tensor(e->x) && rax_is_tensor(e->y);
}

static void evaluator_close(evaluator *e)
{
    rax_function_free(e->step);
    rax_tensor_free(e->x);
    rax_tensor_free(e->y);
    rax_tensor_free(e->loss);
    *e = (evaluator){0};
}

/* The mean loss of the batch that is in x and y. */
static bool evaluator_run(evaluator *e, rax_tree params, double *loss)
{
    rax_value args[] = { rax_pass_tree(params), rax_pass_tensor(e->x), rax_pass_tensor(e->y),
                         rax_pass_record(&e->model, &gpt_model_record) };
    rax_into results[] = { rax_into_tensor(&e->loss) };
    if (!rax_call(e->step, args, results))
        return false;
    *loss = rax_item(e->loss, 0);
    return true;
}

/* The mean over all parts. False without an error where stop ended it. */
static bool whole_loss(evaluator *e, rax_tree params, gpt_part *part, void *context, gpt_stop *stop, double *loss)
{
    double sum = 0, count = 0, mean;
    for (uint64_t k = 0;; k++) {
        size_t real = part(context, k, rax_data(e->x), rax_data(e->y));
        if (real == 0)
            break;
        if (stop() || !evaluator_run(e, params, &mean))
            return false;
        sum += mean * (double)real;
        count += (double)real;
    }
    *loss = sum / count;
    return true;
}

bool gpt_evaluate(const gpt_config *config, rax_tree params, gpt_part *part, void *context,
                  gpt_stop *stop, double *loss)
{
    evaluator e;
    rax_error_clear();
    bool done = evaluator_open(&e, config) && whole_loss(&e, params, part, context, stop, loss);
    evaluator_close(&e);
    return done;
}

/* -- a trainer ---------------------------------------------------------------------------------------------------------- */

struct gpt_trainer {
    const gpt_config *config;
    gpt_batches batches;
    gpt_model_config model;
    gpt_optimizer_config optimizer;
    int64_t iteration;                /* the next one: updates made so far */
    int64_t written;                  /* the last checkpoint's iteration; -1: none in this run */
    bool evaluates;
    rax_tree params, moments;
    rax_fn *step;
    rax_tensor x, y;                  /* i32[A,B,T] */
    rax_tensor loss, grad_norm, lr;   /* f32[], f32[], f64[] */
    evaluator evaluator;
    gpt_metrics *metrics;
};

/* Weights, moments and iteration from the latest checkpoint of out_dir. */
static bool resume(gpt_trainer *t)
{
    const gpt_config *config = t->config;
    gpt_checkpoint *checkpoint = gpt_checkpoint_open(config->out_dir, true);
    bool resumed = checkpoint && gpt_config_same_model(config, &checkpoint->config, checkpoint->folder) &&
                   gpt_weights_read(t->params, checkpoint->model) && gpt_tree_read(t->moments, checkpoint->optimizer);
    if (resumed && checkpoint->seed != config->seed)
        resumed = rax_fail(RAX_MISTAKE, "%s: seed: the run was begun with %" PRId64 ", the configuration says %" PRId64,
                           checkpoint->folder, checkpoint->seed, config->seed);
    if (resumed)
        t->iteration = checkpoint->iteration;
    gpt_checkpoint_close(checkpoint);
    return resumed;
}

static bool make_weights(gpt_trainer *t)
{
    const gpt_config *config = t->config;
    if (strcmp(config->init_from, "resume") == 0)
        return resume(t);
    if (strcmp(config->init_from, "scratch") != 0)
        return gpt_weights_read_folder(t->params, config, config->init_from);
    gpt_weights_init(t->params, &t->model);
    return true;
}

/* Whether this run evaluates. eval_interval has a default, so only one that was asked for contradicts missing data. */
static bool decide_evaluation(gpt_trainer *t)
{
    t->evaluates = t->config->eval_interval > 0 && t->batches.val;
    if (t->config->eval_interval > 0 && !t->batches.val && gpt_config_is_given(t->config, "eval_interval"))
        return rax_fail(RAX_MISTAKE, "eval_interval: there is no validation data: name a file as val_data, or set it to 0");
    return true;
}

static bool trainer_open(gpt_trainer *t)
{
    const gpt_config *config = t->config;
    rax_shape shape = RAX_SHAPE(config->gradient_accumulation_steps, config->batch_size, config->block_size);

    t->model = gpt_model_of(config);
    t->optimizer = gpt_optimizer_of(config);
    if (!decide_evaluation(t))
        return false;
    if (!rax_is_tree(t->params = gpt_params_new(&t->model)) || !rax_is_tree(t->moments = gpt_moments_new(t->params)))
        return false;
    if (!make_weights(t))
        return false;
    t->x = rax_tensor_new(RAX_I32, shape);
    t->y = rax_tensor_new(RAX_I32, shape);
    t->step = gpt_train_step_new();
    if (!rax_is_tensor(t->x) || !rax_is_tensor(t->y) || !t->step || (t->evaluates && !evaluator_open(&t->evaluator, config)))
        return false;
    /* nothing is written before all has been read */
    return gpt_out_dir_prepare(config->out_dir) && (t->metrics = gpt_metrics_open(config->out_dir, t->iteration));
}

gpt_trainer *gpt_trainer_new(const gpt_config *config, const gpt_batches *batches)
{
    gpt_trainer *trainer = rax_alloc(sizeof *trainer);
    *trainer = (gpt_trainer){ .config = config, .batches = *batches, .written = -1 };
    if (trainer_open(trainer))
        return trainer;
    gpt_trainer_free(trainer);
    return NULL;
}

void gpt_trainer_free(gpt_trainer *trainer)
{
    if (!trainer)
        return;
    gpt_metrics_close(trainer->metrics);
    evaluator_close(&trainer->evaluator);
    rax_function_free(trainer->step);
    rax_tensor_free(trainer->x);
    rax_tensor_free(trainer->y);
    rax_tensor_free(trainer->loss);
    rax_tensor_free(trainer->grad_norm);
    rax_tensor_free(trainer->lr);
    rax_tree_free(trainer->moments);
    rax_tree_free(trainer->params);
    rax_free(trainer);
}

rax_tree gpt_trainer_params(const gpt_trainer *trainer) { return trainer->params; }
rax_fn *gpt_trainer_train_step(const gpt_trainer *trainer) { return trainer->step; }
rax_fn *gpt_trainer_eval_step(const gpt_trainer *trainer) { return trainer->evaluator.step; }

/* -- the loop ------------------------------------------------------------------------------------------------------------- */

static void fill_batch(gpt_trainer *t)
{
    const int64_t A = rax_dim(t->x, 0), row = rax_count(t->x) / A;
    int32_t *x = rax_data(t->x), *y = rax_data(t->y);
    for (int64_t j = 0; j < A; j++)
        t->batches.train(t->batches.context, (uint64_t)(t->iteration * A + j), x + j * row, y + j * row);
}

static bool update(gpt_trainer *t)
{
    rax_value args[] = {
        rax_pass_tree(t->params), rax_pass_tree(t->moments), rax_pass_tensor(t->x), rax_pass_tensor(t->y),
        rax_pass_number((double)t->iteration), rax_pass_record(&t->model, &gpt_model_record),
        rax_pass_record(&t->optimizer, &gpt_optimizer_record),
    };
    rax_into results[] = { rax_into_tree(&t->params), rax_into_tree(&t->moments), rax_into_tensor(&t->loss),
                           rax_into_tensor(&t->grad_norm), rax_into_tensor(&t->lr) };
    return rax_call(t->step, args, results);
}

static bool is_due(const gpt_trainer *t, int interval)
{
    return interval > 0 && t->iteration % interval == 0;
}

static bool iterate(gpt_trainer *t, gpt_progress *progress)
{
    fill_batch(t);
    double start = gpt_now_ms();
    if (!update(t))
        return false;
    double loss = rax_item(t->loss, 0), grad_norm = rax_item(t->grad_norm, 0), lr = rax_item(t->lr, 0);
    double time_ms = gpt_now_ms() - start, tokens_per_s = (double)rax_count(t->x) / time_ms * 1e3;

    gpt_metric row[] = { { "loss", loss }, { "grad_norm", grad_norm }, { "lr", lr },
                         { "time_ms", time_ms }, { "tokens_per_s", tokens_per_s } };
    if (is_due(t, t->config->log_interval))
        gpt_print_iteration(progress, t->iteration, loss, grad_norm, lr, time_ms);
    gpt_progress_draw(progress, t->iteration, loss, tokens_per_s);
    if (!gpt_metrics_row(t->metrics, t->iteration, row, sizeof row / sizeof row[0]))
        return false;
    if (!isfinite(loss) || !isfinite(grad_norm))     /* the weights are now of no use */
        return rax_fail(RAX_FAILURE, "iter %" PRId64 ": the %s is %g: the run has diverged", t->iteration,
                        isfinite(loss) ? "gradient norm" : "loss", fabs(isfinite(loss) ? grad_norm : loss));      /* -nan says no more than nan */
    t->iteration++;
    return true;
}

/* The mean over eval_iters random batches, other ones at each evaluation; 0: over the whole split. */
static bool mean_loss(gpt_trainer *t, gpt_stop *stop, double *loss)
{
    evaluator *e = &t->evaluator;
    const int n = t->config->eval_iters;
    double sum = 0, mean;

    if (n == 0)
        return whole_loss(e, t->params, t->batches.val_part, t->batches.context, stop, loss);
    for (int i = 0; i < n; i++) {
        uint64_t m = (uint64_t)t->iteration * (uint64_t)n + (uint64_t)i;
        t->batches.val(t->batches.context, m, rax_data(e->x), rax_data(e->y));
        if (stop() || !evaluator_run(e, t->params, &mean))
            return false;
        sum += mean;
    }
    *loss = sum / n;
    return true;
}

/* An evaluation that a signal ends leaves no row: the run that resumes makes it again. */
static bool evaluate(gpt_trainer *t, gpt_progress *progress, gpt_stop *stop)
{
    double loss, start = gpt_now_ms();
    rax_error_clear();
    if (!mean_loss(t, stop, &loss))
        return rax_error()[0] == '\0';
    gpt_print_evaluation(progress, t->iteration, loss, gpt_now_ms() - start);
    return gpt_metrics_row(t->metrics, t->iteration, &(gpt_metric){ "val_loss", loss }, 1);
}

static bool write_checkpoint(gpt_trainer *t)
{
    if (t->written == t->iteration)
        return true;
    gpt_checkpoint_state state = { .iteration = t->iteration, .seed = t->config->seed, .tuned = "", .config = t->config };
    gpt_arrays model = gpt_arrays_of(t->params, gpt_weights_prefix), moments = gpt_arrays_of(t->moments, "");
    bool written = gpt_metrics_flush(t->metrics) &&
                   gpt_checkpoint_write(t->config->out_dir, &state, model.array, model.count, moments.array, moments.count);
    gpt_arrays_free(&model);
    gpt_arrays_free(&moments);
    t->written = written ? t->iteration : t->written;
    return written;
}

static bool run_iterations(gpt_trainer *t, gpt_progress *progress, gpt_stop *stop)
{
    const gpt_config *config = t->config;
    while (!stop() && t->iteration < config->max_iters) {
        if (t->evaluates && is_due(t, config->eval_interval) && !evaluate(t, progress, stop))
            return false;
        if (stop())
            break;
        if (!iterate(t, progress))
            return false;
        if (is_due(t, config->checkpoint_interval) && !write_checkpoint(t))
            return false;
    }
    return stop() || !t->evaluates || evaluate(t, progress, stop);
}

bool gpt_trainer_run(gpt_trainer *trainer, gpt_stop *stop)
{
    gpt_progress progress = gpt_progress_new(trainer->iteration, trainer->config->max_iters);
    bool ran = run_iterations(trainer, &progress, stop);
    gpt_progress_clear(&progress);
    return ran && write_checkpoint(trainer);
}
