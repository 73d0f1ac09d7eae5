/* Loops of one point that follow each other are one loop, and a launch, of one thread: a learning rate, a norm, what is computed of both.
 *
 *     loop [| 1]:  s = add a, b                 loop [| 1]:  e2 = add a, b; s = e2
 *     loop [| 1]:  t = sqrt s                                e3 = sqrt e2; t = e3
 *
 * Such a loop takes as long as memory takes to answer, and to be launched, which is once then. Fusion joins no more than a few operands, for it does not know that these are
 * no more than a number each. All reads come before all stores, so that a loop is not joined which reads what an earlier one has stored by another name. */
#include "backend_cuda/backend.h"

enum { MOST_PARAMETERS = 400 };                /* of the 512 that are 4 KB */

static bool is_one_point(const kl_kernel *kernel)
{
    if (kernel->kind != KL_LOOP)
        return false;
    const kl_loop *loop = &kernel->loop;
    bool one = true;
    for (int a = 0; a < loop->n_axes; a++)
        one &= loop->extent[a] == 1;
    for (int i = 0; i < loop->n_exprs; i++) {
        const kl_expr *e = &loop->exprs[i];
        one &= e->kind == KL_VALUE || e->kind == KL_OP || (e->kind == KL_LOAD && e->view.n_dynamic == 0);
    }
    for (int i = 0; i < loop->n_outputs; i++)
        one &= loop->outputs[i].kind == KL_STORE && loop->outputs[i].view.n_dynamic == 0;
    return one;
}

static int parameters_of(const kl_loop *loop)
{
    int n = loop->n_outputs;
    for (int i = 0; i < loop->n_exprs; i++)
        n += loop->exprs[i].kind == KL_LOAD;
    return n;
}

enum { FROM_MEMORY = -1, UNKNOWN = -2 };

/* The expression that `first` stores where a later loop reads. */
static int stored_at(const kl_program *p, const kl_loop *first, const kl_view *read)
{
    int found = FROM_MEMORY, memory = kl_memory_of(p, kl_root_buffer(p, read->buffer));
    for (int i = 0; i < first->n_outputs; i++) {
        const kl_output *o = &first->outputs[i];
        if (kl_memory_of(p, kl_root_buffer(p, o->view.buffer)) != memory)
            continue;
        if (o->view.buffer != read->buffer)
            return UNKNOWN;
        if (o->view.offset == read->offset)
            found = o->accumulate ? UNKNOWN : o->expr;
    }
    return found;
}

/* first, with what next does behind it; or false. */
static bool join(kl_program *p, kl_loop *first, const kl_loop *next)
{
    if (parameters_of(first) + parameters_of(next) > MOST_PARAMETERS)
        return false;
    int *at = ARENA_NEW(p->arena, int, next->n_exprs + 1), n = first->n_exprs;
    for (int i = 0; i < next->n_exprs; i++) {
        int stored = next->exprs[i].kind == KL_LOAD ? stored_at(p, first, &next->exprs[i].view) : FROM_MEMORY;
        if (stored == UNKNOWN)
            return false;
        at[i] = stored == FROM_MEMORY ? n + i : stored;
    }
    kl_loop both = kl_copy_loop(p->arena, first, next->n_exprs), other = kl_copy_loop(p->arena, next, 0);
    both.outputs = ARENA_NEW(p->arena, kl_output, first->n_outputs + next->n_outputs);
    for (int i = 0; i < first->n_outputs; i++)
        both.outputs[i] = first->outputs[i];
    for (int i = 0; i < next->n_exprs; i++) {
        kl_expr *e = &both.exprs[both.n_exprs++];
        *e = other.exprs[i];
        for (int a = 0; a < e->n_args; a++)
            e->args[a] = at[e->args[a]];
    }
    for (int i = 0; i < next->n_outputs; i++) {
        kl_output *o = &both.outputs[both.n_outputs++];
        *o = other.outputs[i];
        o->expr = at[o->expr];
    }
    both.n_axes = 1, both.n_outer = 0, both.extent[0] = 1;
    for (int i = 0; i < both.n_exprs; i++) {
        both.exprs[i].row = true;
        if (both.exprs[i].kind == KL_LOAD)
            both.exprs[i].view = (kl_view){ .buffer = both.exprs[i].view.buffer, .offset = both.exprs[i].view.offset };
    }
    for (int i = 0; i < both.n_outputs; i++)
        both.outputs[i].view = (kl_view){ .buffer = both.outputs[i].view.buffer, .offset = both.outputs[i].view.offset };
    kl_tidy_exprs(p->arena, &both);
    *first = both;
    return true;
}

static void join_in(kl_program *p, kl_kernel **kernels, int *n)
{
    int kept = 0;
    for (int i = 0; i < *n; i++) {
        if (kernels[i]->kind == KL_REPEAT)
            join_in(p, kernels[i]->repeat.body, &kernels[i]->repeat.n_body);
        if (kept > 0 && is_one_point(kernels[i]) && is_one_point(kernels[kept - 1]) && join(p, &kernels[kept - 1]->loop, &kernels[i]->loop))
            continue;
        kernels[kept++] = kernels[i];
    }
    *n = kept;
}

void cuda_join_scalars(kl_program *program) { join_in(program, program->kernels, &program->n_kernels); }
