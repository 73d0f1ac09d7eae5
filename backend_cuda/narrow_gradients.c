/* Gradients of attention that are summed up, and otherwise only read rounded to bf16, are stored so at once, and the sum is one of rounded values:
 *
 *     attention ... gradients f32              attention ... gradients bf16
 *       dq = t[24,4,12,1]                        dq = u[24,4,12,1]
 *     loop: u = cast(t), b += t                loop: b += u
 *
 * It is the gradient of a bias before attention: as with gelu's gradient (legalise.c), the product that reads the matrix reads it rounded, and a sum of thousands of rows does
 * not feel it. The wide matrix is neither written nor read: three quarters of the traffic. ir/narrow_stores.c has the case without a sum. All three gradients are of one
 * type, so that it is done for all or none. */
#include "backend_cuda/backend.h"

/* Nothing but e0 = load t, e1 = cast e0 to bf16, u = e1, and sums of e0 over rows or all. Returns which output u is, or -1. */
static int narrowing_store(const kl_uses *u, const kl_kernel *kernel, int t)
{
    const kl_loop *loop = &kernel->loop;
    int at = -1;
    if (kernel->kind != KL_LOOP || loop->n_exprs != 2 || loop->exprs[0].kind != KL_LOAD || loop->exprs[0].view.buffer != t || loop->exprs[1].kind != KL_OP ||
        loop->exprs[1].op != OP_cast || loop->exprs[1].dtype != IR_BF16)
        return -1;
    for (int i = 0; i < loop->n_outputs; i++) {
        const kl_output *o = &loop->outputs[i];
        if (o->kind != KL_STORE && o->expr == 0)
            continue;
        if (at >= 0 || o->kind != KL_STORE || o->expr != 1 || o->accumulate || !kl_same_view(&o->view, &loop->exprs[0].view))
            return -1;
        at = i;
    }
    const kl_buffer *buffers = u->program->buffers;
    int to = at < 0 ? -1 : loop->outputs[at].view.buffer;
    return to >= 0 && buffers[to].kind == KL_TEMP && buffers[to].count == buffers[t].count && u->writes[to] == 1 && loop->n_outputs > 1 ? at : -1;
}

/* The loop behind list[at] that narrows buffer t, which n stores of list[at] make and it alone reads; NULL: none that may go. */
static kl_kernel *narrowing_loop(const kl_uses *u, kl_kernel **list, int n_list, int at, int t, int n, int *store)
{
    if (u->program->buffers[t].kind != KL_TEMP || u->writes[t] != n || u->reads[t] != 1)
        return NULL;
    for (int i = at + 1; i < n_list; i++)
        if ((*store = narrowing_store(u, list[i], t)) >= 0)
            return list[i];
    return NULL;
}

/* The loop sums u, which is there before it. */
static void sum_narrow(kl_program *program, kl_loop *loop, int store)
{
    int n = 0;
    loop->exprs[0].view.buffer = loop->outputs[store].view.buffer;
    loop->exprs[0].dtype = IR_BF16;
    loop->exprs[1].dtype = IR_F32;
    kl_output *outputs = ARENA_NEW(program->arena, kl_output, loop->n_outputs);
    for (int i = 0; i < loop->n_outputs; i++)
        if (i != store) {
            outputs[n] = loop->outputs[i];
            outputs[n++].expr = 1;
        }
    loop->outputs = outputs;
    loop->n_outputs = n;
}

static void narrow_attention(kl_program *program, const kl_uses *u, kl_kernel **list, int n_list, int at)
{
    kl_attention *a = list[at]->attention;
    kl_view *gradient[] = { &a->dq, &a->dk, &a->dv };
    kl_kernel *loop[3];
    int store[3];
    if (!a->backward || a->dtype != IR_BF16 || a->grad_dtype != IR_F32)
        return;
    for (int i = 0; i < 3; i++) {
        int n = 0;
        for (int j = 0; j < 3; j++)
            n += gradient[j]->buffer == gradient[i]->buffer;
        if (!(loop[i] = narrowing_loop(u, list, n_list, at, gradient[i]->buffer, n, &store[i])))
            return;
    }
    for (int i = 0; i < 3; i++) {
        int narrow = loop[i]->loop.outputs[store[i]].view.buffer, wide = gradient[i]->buffer;
        bool is_first = true;
        for (int j = 0; j < i; j++)
            is_first &= loop[j] != loop[i];
        if (!is_first)
            continue;
        for (int j = i; j < 3; j++)
            if (gradient[j]->buffer == wide)
                gradient[j]->buffer = narrow;
        sum_narrow(program, &loop[i]->loop, store[i]);
    }
    a->grad_dtype = IR_BF16;
}

static void narrow_list(kl_program *program, const kl_uses *u, kl_kernel **list, int n)
{
    for (int i = 0; i < n; i++) {
        if (list[i]->kind == KL_REPEAT)
            narrow_list(program, u, list[i]->repeat.body, list[i]->repeat.n_body);
        if (list[i]->kind == KL_ATTENTION)
            narrow_attention(program, u, list, n, i);
    }
}

void cuda_narrow_gradients(kl_program *program)
{
    kl_uses u = kl_count_uses(program);
    narrow_list(program, &u, program->kernels, program->n_kernels);
}
