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

/* The evaluation step with room for two batches: the next one is on its way before the loss of the last is read, so that a device has no
 * gap between them. */
typedef struct {
    rax_fn *step;
    struct { rax_tensor x, y, loss; } batch[2];       /* i32[B,T] twice, f32[] */
    gpt_model_config model;
} evaluator;

static bool evaluator_open(evaluator *e, const gpt_config *config)
{
    rax_shape shape = RAX_SHAPE(config->batch_size, config->block_size);
    *e = (evaluator){ .step = gpt_eval_step_new(), .model = gpt_model_of(config) };
    bool made = e->step != NULL;
    for (int i = 0; made && i < 2; i++)
        made = rax_is_tensor(e->batch[i].x = rax_tensor_new(RAX_I32, shape)) && rax_is_tensor(e->batch[i].y = rax_tensor_new(RAX_I32, shape));
    return made;
}

static void evaluator_close(evaluator *e)
{
    rax_function_free(e->step);
    for (int i = 0; i < 2; i++) {
        rax_tensor_free(e->batch[i].x);
        rax_tensor_free(e->batch[i].y);
        rax_tensor_free(e->batch[i].loss);
    }
    *e = (evaluator){0};
}

/* Starts on the batch that is in batch[i]. */
static bool evaluator_start(evaluator *e, rax_tree params, int i)
{
    rax_value args[] = { rax_pass_tree(params), rax_pass_tensor(e->batch[i].x), rax_pass_tensor(e->batch[i].y),
                         rax_pass_record(&e->model, &gpt_model_record) };
    rax_into results[] = { rax_into_tensor(&e->batch[i].loss) };
    return rax_call(e->step, args, results);
}

/* A scalar's value: false where the device does not give it. */
static bool read_number(rax_tensor scalar, double *value)
{
    if (!rax_read(scalar))
        return false;
    *value = rax_item(scalar, 0);
    return true;
}

/* The mean over all parts. False without an error where stop ended it. */
static bool evaluator_mean(evaluator *e, rax_tree params, gpt_part *part, void *context, gpt_stop *stop, double *loss)
{
    double sum = 0, count = 0, mean;
    size_t before = 0;                /* targets of the part that was started last */
    for (uint64_t k = 0;; k++) {
        int i = (int)(k % 2);
        int32_t *x = rax_overwrite(e->batch[i].x), *y = rax_overwrite(e->batch[i].y);
        if (!x || !y)
            return false;
        size_t real = part(context, k, x, y);
        if (real > 0 && (stop() || !evaluator_start(e, params, i)))
            return false;
        if (before > 0 && !read_number(e->batch[1 - i].loss, &mean))
            return false;
        if (before > 0) {
            sum += mean * (double)before;
            count += (double)before;
        }
        if (real == 0)
            break;
        before = real;
    }
    *loss = sum / count;
    return true;
}

bool gpt_evaluate(const gpt_config *config, rax_tree params, gpt_part *part, void *context,
                  gpt_stop *stop, double *loss)
{
    evaluator e;
    rax_error_clear();
    bool done = evaluator_open(&e, config) && evaluator_mean(&e, params, part, context, stop, loss);
    evaluator_close(&e);
    return done;
}

/* -- a trainer ---------------------------------------------------------------------------------------------------------- */

/* An iteration whose results nobody has read yet. */
typedef struct { bool is; int64_t iteration; double ready_ms; } started;

struct gpt_trainer {
    const gpt_config *config;
    gpt_batches batches;
    gpt_model_config model;
    gpt_optimizer_config optimizer;
    int64_t iteration;                /* the next one: updates started so far */
    int64_t written;                  /* the last checkpoint's iteration; -1: none in this run */
    bool evaluates;
    rax_tree params, moments;
    rax_fn *step;
    /* i32[A,B,T] twice, f32[], f32[], f64[]; by turns where results are read late */
    struct { rax_tensor x, y, loss, grad_norm, lr; } turn[2];
    /* A device works on its own: it is given the next iteration before the results of the last are read, so that it never waits for the
     * host. What is printed and written, and in which order, does not depend on it. */
    bool reads_late;
    started started;
    double known_ms;                  /* when the last loss was known */
    evaluator evaluator;
    gpt_metrics *metrics;
    char *warning;                    /* NULL: none */
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
    if (resumed && checkpoint->config.device == config->device && strcmp(checkpoint->tuned, rax_tuned()) != 0)
        t->warning = gpt_format("%s: the run goes on with other algorithms for its products than it was begun with (%s, now %s):"
                                " its last bits are no longer those of a run that never stopped",
                                checkpoint->folder, *checkpoint->tuned ? checkpoint->tuned : "not tuned", *rax_tuned() ? rax_tuned() : "not tuned");
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
    return gpt_weights_init(t->params, &t->model);
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
    t->reads_late = config->device != GPT_DEVICE_CPU;
    for (int i = 0; i <= t->reads_late; i++)
        if (!rax_is_tensor(t->turn[i].x = rax_tensor_new(RAX_I32, shape)) || !rax_is_tensor(t->turn[i].y = rax_tensor_new(RAX_I32, shape)))
            return false;
    t->step = gpt_train_step_new();
    if (!t->step || (t->evaluates && !evaluator_open(&t->evaluator, config)))
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
    for (int i = 0; i < 2; i++) {
        rax_tensor_free(trainer->turn[i].x);
        rax_tensor_free(trainer->turn[i].y);
        rax_tensor_free(trainer->turn[i].loss);
        rax_tensor_free(trainer->turn[i].grad_norm);
        rax_tensor_free(trainer->turn[i].lr);
    }
    rax_tree_free(trainer->moments);
    rax_tree_free(trainer->params);
    rax_free(trainer->warning);
    rax_free(trainer);
}

rax_tree gpt_trainer_params(const gpt_trainer *trainer) { return trainer->params; }
const char *gpt_trainer_warning(const gpt_trainer *trainer) { return trainer->warning; }
rax_fn *gpt_trainer_train_step(const gpt_trainer *trainer) { return trainer->step; }
rax_fn *gpt_trainer_eval_step(const gpt_trainer *trainer) { return trainer->evaluator.step; }

/* -- the loop ------------------------------------------------------------------------------------------------------------- */

static int turn_of(const gpt_trainer *t, int64_t iteration) { return t->reads_late ? (int)(iteration % 2) : 0; }

static bool fill_batch(gpt_trainer *t, int turn)
{
    const int64_t A = rax_dim(t->turn[turn].x, 0), row = rax_count(t->turn[turn].x) / A;
    int32_t *x = rax_overwrite(t->turn[turn].x), *y = rax_overwrite(t->turn[turn].y);
    for (int64_t j = 0; x && y && j < A; j++)
        t->batches.train(t->batches.context, (uint64_t)(t->iteration * A + j), x + j * row, y + j * row);
    return x && y;
}

static bool update(gpt_trainer *t, int turn)
{
    rax_value args[] = {
        rax_pass_tree(t->params), rax_pass_tree(t->moments), rax_pass_tensor(t->turn[turn].x), rax_pass_tensor(t->turn[turn].y),
        rax_pass_number((double)t->iteration), rax_pass_record(&t->model, &gpt_model_record),
        rax_pass_record(&t->optimizer, &gpt_optimizer_record),
    };
    rax_into results[] = { rax_into_tree(&t->params), rax_into_tree(&t->moments), rax_into_tensor(&t->turn[turn].loss),
                           rax_into_tensor(&t->turn[turn].grad_norm), rax_into_tensor(&t->turn[turn].lr) };
    return rax_call(t->step, args, results);
}

static bool is_due(const gpt_trainer *t, int interval)
{
    return interval > 0 && t->iteration % interval == 0;
}

static bool start(gpt_trainer *t)
{
    int turn = turn_of(t, t->iteration);
    if (!fill_batch(t, turn))
        return false;
    t->started = (started){ true, t->iteration, gpt_now_ms() };
    if (!update(t, turn))
        return false;
    t->iteration++;
    return true;
}

/* Reads the results of an iteration and tells of them. Where the one before was under way when its batch was ready, its time begins when that
 * one's loss was known: times add up to the run. */
static bool finish(gpt_trainer *t, const started *s, gpt_progress *progress)
{
    const int turn = turn_of(t, s->iteration), log_interval = t->config->log_interval;
    double loss, grad_norm, lr;
    if (!read_number(t->turn[turn].loss, &loss) || !read_number(t->turn[turn].grad_norm, &grad_norm) || !read_number(t->turn[turn].lr, &lr))
        return false;
    double begin = fmax(s->ready_ms, t->known_ms);
    t->known_ms = gpt_now_ms();
    double time_ms = t->known_ms - begin, tokens_per_s = (double)rax_count(t->turn[turn].x) / time_ms * 1e3;

    gpt_metric row[] = { { "loss", loss }, { "grad_norm", grad_norm }, { "lr", lr },
                         { "time_ms", time_ms }, { "tokens_per_s", tokens_per_s } };
    if (log_interval > 0 && s->iteration % log_interval == 0)
        gpt_print_iteration(progress, s->iteration, loss, grad_norm, lr, time_ms);
    gpt_progress_draw(progress, s->iteration, loss, tokens_per_s);
    if (!gpt_metrics_row(t->metrics, s->iteration, row, sizeof row / sizeof row[0]))
        return false;
    if (!isfinite(loss) || !isfinite(grad_norm))     /* the weights are now of no use */
        return rax_fail(RAX_FAILURE, "iter %" PRId64 ": the %s is %g: the run has diverged", s->iteration,
                        isfinite(loss) ? "gradient norm" : "loss", fabs(isfinite(loss) ? grad_norm : loss));      /* -nan says no more than nan */
    return true;
}

/* Finishes what was started. Before anything but the next iteration. */
static bool settle(gpt_trainer *t, gpt_progress *progress)
{
    started last = t->started;
    t->started.is = false;
    return !last.is || finish(t, &last, progress);
}

static bool iterate(gpt_trainer *t, gpt_progress *progress)
{
    started before = t->started;
    if (!start(t))
        return false;
    return t->reads_late ? !before.is || finish(t, &before, progress) : settle(t, progress);
}

/* Random batches as parts of one target each; other ones at each evaluation. */
static size_t random_part(void *context, uint64_t k, int32_t *x, int32_t *y)
{
    const gpt_trainer *t = context;
    const uint64_t n = (uint64_t)t->config->eval_iters;
    if (k == n)
        return 0;
    t->batches.val(t->batches.context, (uint64_t)t->iteration * n + k, x, y);
    return 1;
}

/* The mean over eval_iters random batches; 0: over the whole split. */
static bool mean_loss(gpt_trainer *t, gpt_stop *stop, double *loss)
{
    if (t->config->eval_iters == 0)
        return evaluator_mean(&t->evaluator, t->params, t->batches.val_part, t->batches.context, stop, loss);
    return evaluator_mean(&t->evaluator, t->params, random_part, t, stop, loss);
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
    gpt_checkpoint_state state = { .iteration = t->iteration, .seed = t->config->seed, .tuned = rax_tuned(), .config = t->config };
    gpt_arrays model, moments;
    bool read = gpt_arrays_of(t->params, gpt_weights_prefix, &model), all = gpt_arrays_of(t->moments, "", &moments);
    bool written = read && all && gpt_metrics_flush(t->metrics) &&
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
        if (t->evaluates && is_due(t, config->eval_interval) && (!settle(t, progress) || !evaluate(t, progress, stop)))
            return false;
        if (stop())
            break;
        if (!iterate(t, progress))
            return false;
        if (is_due(t, config->checkpoint_interval) && (!settle(t, progress) || !write_checkpoint(t)))
            return false;
    }
    if (!settle(t, progress))
        return false;
    return stop() || !t->evaluates || evaluate(t, progress, stop);
}

bool gpt_trainer_run(gpt_trainer *trainer, gpt_stop *stop)
{
    gpt_progress progress = gpt_progress_new(trainer->iteration, trainer->config->max_iters);
    bool ran = run_iterations(trainer, &progress, stop);
    gpt_progress_clear(&progress);
    return ran && write_checkpoint(trainer);
}
