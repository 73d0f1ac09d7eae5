/* Gradients of attention that are only read to be stored in a narrower type are stored in it at once:
 *
 *     attention ... gradients f32                attention ... gradients bf16
 *       dq = t[24,4,12,1]                          dq = u[24,4,12,1]
 *     loop: u = cast(t)
 *
 * and for a backend that asks for it, also where the loop sums t up, as for the bias before attention. The sum is one of rounded values then:
 *
 *     loop: u = cast(t), b += t                  loop: b += u
 *
 * The product that reads the matrix reads it rounded, and a sum of thousands of rows does not feel it. The wide matrix is neither written nor read.
 *
 * All three gradients are of one type, so that it is done for all or none. Needs t to be a temporary that the attention alone writes and
 * the loop alone reads, and u one that the loop alone writes, laid out as t is. (A product's value is stored in a narrower type by its
 * epilogue: see narrow.c, fuse_epilogues.c.) */
#include "ir/kernels.h"

enum { NONE = -1 };

typedef struct { const kl_uses *uses; bool sums; } narrowing;      /* sums: loops that have some will do */

/* The output u[i] = bf16 of t[i] of a loop that reads an f32 t and, but for sums of it, does nothing else; NONE: it is no such loop. */
static int narrow_output(const narrowing *w, const kl_kernel *kernel, int t)
{
    const kl_loop *loop = &kernel->loop;
    int at = NONE;
    if (kernel->kind != KL_LOOP || loop->n_exprs != 2)
        return NONE;
    const kl_expr *load = &loop->exprs[0], *cast = &loop->exprs[1];
    if (load->kind != KL_LOAD || load->dtype != IR_F32 || load->view.buffer != t || cast->kind != KL_OP || cast->op != OP_cast || cast->dtype != IR_BF16)
        return NONE;
    for (int i = 0; i < loop->n_outputs; i++) {
        const kl_output *output = &loop->outputs[i];
        if (w->sums && output->kind != KL_STORE && output->expr == 0)
            continue;
        if (at != NONE || output->kind != KL_STORE || output->expr != 1 || output->accumulate || !kl_same_view(&output->view, &load->view))
            return NONE;
        at = i;
    }
    const kl_buffer *buffers = w->uses->program->buffers;
    int u = at == NONE ? NONE : loop->outputs[at].view.buffer;
    return u != NONE && buffers[u].kind == KL_TEMP && buffers[u].count == buffers[t].count && w->uses->writes[u] == 1 ? at : NONE;
}

/* The loop behind list[at] that narrows buffer t, which n stores of list[at] make, and its output; NONE: none that may go. */
static int narrowing_loop(const narrowing *w, kl_kernel **list, int n_list, int at, int t, int n, int *output)
{
    if (w->uses->program->buffers[t].kind != KL_TEMP || w->uses->reads[t] != 1 || w->uses->writes[t] != n)
        return NONE;
    for (int i = at + 1; i < n_list; i++)
        if ((*output = narrow_output(w, list[i], t)) != NONE)
            return i;
    return NONE;
}

/* What is left of the loop once u is there before it: its sums, of u. */
static void sum_narrow(kl_program *program, kl_loop *loop, int output)
{
    kl_loop sums = kl_copy_loop(program->arena, loop, 0);
    sums.exprs[0].view.buffer = loop->outputs[output].view.buffer;
    sums.exprs[0].dtype = IR_BF16;
    sums.exprs[1].dtype = IR_F32;
    sums.n_outputs = 0;
    for (int i = 0; i < loop->n_outputs; i++)
        if (i != output) {
            sums.outputs[sums.n_outputs] = loop->outputs[i];
            sums.outputs[sums.n_outputs++].expr = 1;
        }
    *loop = sums;
}

static void narrow_gradients(kl_program *program, const narrowing *w, kl_kernel **list, int *n, int at)
{
    kl_attention *a = list[at]->attention;
    kl_view *grads[] = { &a->dq, &a->dk, &a->dv };
    int loops[COUNT_OF(grads)], outputs[COUNT_OF(grads)], to[COUNT_OF(grads)];
    for (size_t i = 0; i < COUNT_OF(grads); i++) {
        int stores = 0;
        for (size_t j = 0; j < COUNT_OF(grads); j++)
            stores += grads[j]->buffer == grads[i]->buffer;
        loops[i] = narrowing_loop(w, list, *n, at, grads[i]->buffer, stores, &outputs[i]);
        if (loops[i] == NONE)
            return;
        to[i] = list[loops[i]]->loop.outputs[outputs[i]].view.buffer;
    }
    for (size_t i = 0; i < COUNT_OF(grads); i++) {
        bool is_first = true;                             /* of two in one buffer it is the same loop */
        for (size_t j = 0; j < i; j++)
            is_first &= loops[j] != loops[i];
        grads[i]->buffer = to[i];
        if (is_first)
            sum_narrow(program, &list[loops[i]]->loop, outputs[i]);
    }
    a->grad_dtype = IR_BF16;
    int left = 0;
    for (int i = 0; i < *n; i++)
        if (list[i]->kind != KL_LOOP || list[i]->loop.n_outputs > 0)
            list[left++] = list[i];
    *n = left;
}

static void narrow_list(kl_program *program, const narrowing *w, kl_kernel **list, int *n)
{
    for (int i = 0; i < *n; i++) {
        if (list[i]->kind == KL_REPEAT)
            narrow_list(program, w, list[i]->repeat.body, &list[i]->repeat.n_body);
        if (list[i]->kind == KL_ATTENTION && list[i]->attention->backward && list[i]->attention->grad_dtype == IR_F32)
            narrow_gradients(program, w, list, n, i);
    }
}

void kl_narrow_stores(kl_program *program, bool sums)
{
    kl_uses uses = kl_count_uses(program);
    narrow_list(program, &(narrowing){ &uses, sums }, program->kernels, &program->n_kernels);
}
