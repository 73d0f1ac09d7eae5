/* The whole training step of each workload, forward to AdamW, and what it takes to compile it. */
#include "bench/bench.h"

#include <stdio.h>

#include "nanogpt/train_step.h"
#include "nanogpt/weights.h"

typedef struct {
    bench *b;
    gpt_model_config model;
    gpt_optimizer_config optimizer;
    rax_tree params, moments;
    rax_fn *step;
    rax_tensor x, y, loss, grad_norm, lr;
    int64_t iteration;
} stepper;

static void clear(stepper *s)
{
    rax_function_free(s->step);
    rax_tree_free(s->params);
    rax_tree_free(s->moments);
    rax_tensor_free(s->x);
    rax_tensor_free(s->y);
    rax_tensor_free(s->loss);
    rax_tensor_free(s->grad_norm);
    rax_tensor_free(s->lr);
    s->step = NULL;
    s->params = s->moments = RAX_NO_TREE;
    s->x = s->y = s->loss = s->grad_norm = s->lr = RAX_NO_TENSOR;
}

static void end(void *context)
{
    clear(context);
    rax_free(context);
}

/* Weights, and a batch of tokens in which each follows from the one before. */
static bool fill(stepper *s, int micro_batches, const bench_workload *w)
{
    rax_shape shape = RAX_SHAPE(micro_batches, w->batch, w->context);
    s->params = gpt_params_new(&s->model);
    s->moments = rax_is_tree(s->params) ? gpt_moments_new(s->params) : RAX_NO_TREE;
    s->x = rax_tensor_new(RAX_I32, shape);
    s->y = rax_tensor_new(RAX_I32, shape);
    s->step = gpt_train_step_new();
    if (!rax_is_tree(s->moments) || !rax_is_tensor(s->x) || !rax_is_tensor(s->y) || !s->step)
        return false;
    if (!gpt_weights_init(s->params, &s->model))
        return false;
    int32_t *x = rax_data(s->x), *y = rax_data(s->y), next = 1;
    for (int64_t i = 0; i < rax_count(s->x); i++) {
        x[i] = next;
        y[i] = next = (int32_t)(((int64_t)next * 1103515245 + 12345) % w->vocab);
    }
    return true;
}

static stepper *stepper_of(bench *b, const bench_workload *w, bool bf16)
{
    stepper *s = rax_alloc(sizeof *s);
    s->b = b;
    s->model = (gpt_model_config){ .n_layer = w->layers, .n_head = w->heads, .n_embd = w->width, .block_size = w->context, .vocab_size = w->vocab,
                                   .bias = w->bias, .bf16 = bf16, .seed = 1 };
    s->optimizer = (gpt_optimizer_config){ .learning_rate = 1e-3, .min_lr = 1e-3, .lr_decay_iters = 1000, .weight_decay = 0.1, .beta1 = 0.9,
                                           .beta2 = 0.99, .grad_clip = 1 };
    return s;
}

static bool call(void *context)
{
    stepper *s = context;
    rax_value args[] = { rax_pass_tree(s->params), rax_pass_tree(s->moments), rax_pass_tensor(s->x), rax_pass_tensor(s->y),
                         rax_pass_number((double)s->iteration++), rax_pass_record(&s->model, &gpt_model_record),
                         rax_pass_record(&s->optimizer, &gpt_optimizer_record) };
    rax_into results[] = { rax_into_tree(&s->params), rax_into_tree(&s->moments), rax_into_tensor(&s->loss), rax_into_tensor(&s->grad_norm),
                           rax_into_tensor(&s->lr) };
    return rax_call(s->step, args, results);
}

static double planned_mb(const void *context) { return (double)rax_stats(((const stepper *)context)->step).arena_bytes * 1e-6; }

static bench_case step_case(stepper *s, const bench_workload *w, int micro_batches, const char *name)
{
    bench_case c = { .bound = s->model.bf16 ? BENCH_BF16 : BENCH_F32, .flops = micro_batches * bench_step_flops(w), .call = call, .planned_mb = planned_mb, .free = end };
    snprintf(c.name, sizeof c.name, "%s %s", name, s->model.bf16 ? "bf16" : "f32");
    if (fill(s, micro_batches, w))
        c.context = s;
    else
        end(s);
    return c;
}

bench_case bench_step_case(bench *b, const bench_workload *w, bool bf16, const char *name) { return step_case(stepper_of(b, w, bf16), w, 1, name); }

/* The step that rax train would run: its dropout, its micro-batches, its dtype. */
static bool own_step(bench *b)
{
    const gpt_config *config = b->config;
    bench_workload w = { "config", config->n_layer, config->n_head, config->n_embd, config->block_size, config->batch_size, config->vocab_size, config->bias };
    stepper *s = stepper_of(b, &w, false);
    s->model = gpt_model_of(config);
    s->optimizer = gpt_optimizer_of(config);
    bench_case c = step_case(s, &w, config->gradient_accumulation_steps, "step/config");
    return bench_measure(b, 1, &c);
}

static bool one_step(bench *b, int i, bool bf16)
{
    char name[64];
    snprintf(name, sizeof name, "step/%s", bench_workloads[i].name);
    bench_case c = bench_step_case(b, &bench_workloads[i], bf16, name);
    return bench_measure(b, 1, &c);
}

bool bench_step(bench *b)
{
    bool done = true;
    for (int i = 0; done && i < BENCH_WORKLOADS; i++)
        for (int bf16 = 0; done && bf16 < 2; bf16++)
            if (b->workload[i] && (bf16 ? b->bf16 : b->f32) && !b->stop())
                done = one_step(b, i, bf16);
    return done && (!b->config || b->stop() || own_step(b));
}

/* -- compiling ------------------------------------------------------------------------------------------------------------- */

/* Tracing and compiling by a process that has no code, its cache on disk being empty or none. The weights are small: what is compiled does not
 * depend on how many there are. */
static bool compile_sample(void *context, double *ms)
{
    stepper *s = context;
    rax_settings settings = s->b->settings;
    bench_workload w = { "compile", s->model.n_layer, s->model.n_head, s->model.n_embd, s->model.block_size, 2, s->model.vocab_size, s->model.bias };
    settings.cache_dir = "";
    settings.quiet = true;
    rax_shutdown();
    bool done = rax_configure(&settings) && fill(s, 1, &w) && call(s);
    rax_fn_stats stats = done ? rax_stats(s->step) : (rax_fn_stats){0};
    *ms = stats.trace_ms + stats.compile_ms;
    clear(s);
    rax_shutdown();
    return rax_configure(&s->b->settings) && done;
}

static bench_case compile_case(bench *b, int layers, bool bf16)
{
    bench_workload w = bench_workloads[0];
    w.layers = layers;
    bench_case c = { .bound = BENCH_NOTHING, .sample = compile_sample, .free = end, .context = stepper_of(b, &w, bf16) };
    snprintf(c.name, sizeof c.name, "compile/%s, %d layers %s", w.name, layers, bf16 ? "bf16" : "f32");
    return c;
}

bool bench_compile(bench *b)
{
    bench_case cases[4];
    int n = 0;
    for (int bf16 = 0; bf16 < 2; bf16++)
        if (bf16 ? b->bf16 : b->f32) {
            cases[n++] = compile_case(b, 4, bf16);
            cases[n++] = compile_case(b, 48, bf16);
        }
    return bench_measure(b, n, cases);
}
