/* What a loop's shape is, and how it is made simpler; its expressions numbered anew.
 *
 * Merging takes axes of a loop that every view crosses as one: for each view, stepping the outer axis is the same as running off the
 * end of the inner one. Drops axes of one. Outer and inner axes merge only among themselves where the loop has rows.
 *
 *     axes 8, 64 | 384 with strides 24576, 384, 1       axes 512 | 384 with strides 384, 1 */
#include "ir/kernels.h"

#include <string.h>

/* -- questions, and a copy ---------------------------------------------------------------------------------------------- */

static int64_t extent_of(const kl_loop *loop, int from, int to)
{
    int64_t n = 1;
    for (int i = from; i < to; i++)
        n *= loop->extent[i];
    return n;
}

int64_t kl_rows(const kl_loop *loop) { return extent_of(loop, 0, loop->n_outer); }
int64_t kl_inner(const kl_loop *loop) { return extent_of(loop, loop->n_outer, loop->n_axes); }

bool kl_has_expr(const kl_loop *loop, kl_expr_kind kind)
{
    for (int i = 0; i < loop->n_exprs; i++)
        if (loop->exprs[i].kind == kind)
            return true;
    return false;
}

int kl_count_outputs(const kl_loop *loop, kl_output_kind kind)
{
    int n = 0;
    for (int i = 0; i < loop->n_outputs; i++)
        n += loop->outputs[i].kind == kind;
    return n;
}

kl_loop kl_copy_loop(base_arena *arena, const kl_loop *loop, int more_exprs)
{
    kl_loop copy = *loop;
    copy.exprs = ARENA_NEW(arena, kl_expr, loop->n_exprs + more_exprs);
    copy.outputs = ARENA_NEW(arena, kl_output, loop->n_outputs);
    if (loop->n_exprs)                           /* an empty loop may have NULL */
        memcpy(copy.exprs, loop->exprs, sizeof(kl_expr) * (size_t)loop->n_exprs);
    if (loop->n_outputs)
        memcpy(copy.outputs, loop->outputs, sizeof(kl_output) * (size_t)loop->n_outputs);
    return copy;
}

int kl_loops_of(kl_kernel *kernel, kl_loop **loops)
{
    *loops = kernel->kind == KL_LIST ? kernel->list.loops : &kernel->loop;
    return kernel->kind == KL_LIST ? kernel->list.n : kernel->kind == KL_LOOP;
}

/* -- expressions anew ----------------------------------------------------------------------------------------------------- */

/* at: what is there so far; name: by old number the new one, or -1. */
typedef struct { base_arena *arena; const kl_loop *from; kl_expr *at; int n, *name; } tidying;

static int tidy_expr(tidying *t, int which);

static void tidy_dynamic(tidying *t, kl_view *view)
{
    kl_dynamic *dynamic = view->n_dynamic ? ARENA_NEW(t->arena, kl_dynamic, view->n_dynamic) : NULL;
    for (int i = 0; i < view->n_dynamic; i++)
        dynamic[i] = (kl_dynamic){ tidy_expr(t, view->dynamic[i].expr), view->dynamic[i].stride, view->dynamic[i].limit };
    view->dynamic = dynamic;
}

static int tidy_expr(tidying *t, int which)
{
    if (t->name[which] >= 0)
        return t->name[which];
    kl_expr e = t->from->exprs[which];
    for (int i = 0; i < e.n_args; i++)
        e.args[i] = tidy_expr(t, e.args[i]);
    tidy_dynamic(t, &e.view);
    t->at[t->n] = e;
    return t->name[which] = t->n++;
}

void kl_need_expr(const kl_loop *loop, int which, bool *needed)
{
    const kl_expr *e = &loop->exprs[which];
    if (needed[which])
        return;
    needed[which] = true;
    for (int i = 0; i < e->n_args; i++)
        kl_need_expr(loop, e->args[i], needed);
    for (int i = 0; i < e->view.n_dynamic; i++)
        kl_need_expr(loop, e->view.dynamic[i].expr, needed);
}

void kl_need_outputs(const kl_loop *loop, bool *needed)
{
    for (int i = 0; i < loop->n_outputs; i++) {
        kl_need_expr(loop, loop->outputs[i].expr, needed);
        for (int j = 0; j < loop->outputs[i].view.n_dynamic; j++)
            kl_need_expr(loop, loop->outputs[i].view.dynamic[j].expr, needed);
    }
}

void kl_tidy_exprs(base_arena *arena, kl_loop *loop)
{
    tidying t = { arena, loop, ARENA_NEW(arena, kl_expr, loop->n_exprs), 0, base_alloc(sizeof(int) * (size_t)(loop->n_exprs + 1)) };
    bool *needed = base_alloc(sizeof *needed * (size_t)(loop->n_exprs + 1));
    kl_need_outputs(loop, needed);
    for (int i = 0; i < loop->n_exprs; i++)
        t.name[i] = -1;
    for (int i = 0; i < loop->n_exprs; i++)
        if (needed[i])
            tidy_expr(&t, i);
    for (int i = 0; i < loop->n_outputs; i++) {
        loop->outputs[i].expr = t.name[loop->outputs[i].expr];
        tidy_dynamic(&t, &loop->outputs[i].view);
    }
    loop->exprs = t.at;
    loop->n_exprs = t.n;
    base_free(t.name);
    base_free(needed);
}

static void redirect_dynamic(base_arena *arena, kl_view *view, int from, int to)
{
    kl_dynamic *dynamic = view->n_dynamic ? ARENA_NEW(arena, kl_dynamic, view->n_dynamic) : NULL;
    for (int i = 0; i < view->n_dynamic; i++)
        dynamic[i] = (kl_dynamic){ view->dynamic[i].expr == from ? to : view->dynamic[i].expr, view->dynamic[i].stride, view->dynamic[i].limit };
    view->dynamic = dynamic;
}

void kl_redirect_expr(base_arena *arena, kl_loop *loop, int readers, int from, int to)
{
    for (int i = 0; i < readers; i++) {
        kl_expr *e = &loop->exprs[i];
        for (int j = 0; j < e->n_args; j++)
            e->args[j] = e->args[j] == from ? to : e->args[j];
        redirect_dynamic(arena, &e->view, from, to);
    }
    for (int i = 0; i < loop->n_outputs; i++) {
        kl_output *o = &loop->outputs[i];
        o->expr = o->expr == from ? to : o->expr;
        redirect_dynamic(arena, &o->view, from, to);
    }
}

/* -- merging axes --------------------------------------------------------------------------------------------------------- */

static bool for_all_views(const kl_loop *loop, bool (*test)(const kl_view *view, int axis, int64_t extent), int axis, int64_t extent)
{
    for (int i = 0; i < loop->n_exprs; i++)
        if (!test(&loop->exprs[i].view, axis, extent))
            return false;
    for (int i = 0; i < loop->n_outputs; i++)
        if (!test(&loop->outputs[i].view, axis, extent))
            return false;
    return true;
}

static bool crosses_as_one(const kl_view *view, int axis, int64_t inner_extent)
{
    return view->stride[axis] == view->stride[axis + 1] * inner_extent;
}

static void drop_axis(kl_loop *loop, int axis)
{
    size_t after = (size_t)(loop->n_axes - axis - 1) * sizeof(int64_t);
    memmove(&loop->extent[axis], &loop->extent[axis + 1], after);
    loop->extent[loop->n_axes - 1] = 0;
    for (int i = 0; i < loop->n_exprs + loop->n_outputs; i++) {
        kl_view *view = i < loop->n_exprs ? &loop->exprs[i].view : &loop->outputs[i - loop->n_exprs].view;
        memmove(&view->stride[axis], &view->stride[axis + 1], after);
        view->stride[loop->n_axes - 1] = 0;
    }
    loop->n_axes--;
    if (axis < loop->n_outer)
        loop->n_outer--;
}

bool kl_is_once_a_row(const kl_loop *loop, const kl_output *output)
{
    bool once = loop->exprs[output->expr].row && kl_inner(loop) != 1;
    for (int i = loop->n_outer; i < loop->n_axes; i++)
        once &= loop->extent[i] == 1 || output->view.stride[i] == 0;
    return once;
}

void kl_merge_axes(kl_loop *loop)
{
    bool rows = kl_has_expr(loop, KL_REDUCE) || kl_count_outputs(loop, KL_SUM_OUTER) > 0;
    for (int i = 0; i < loop->n_outputs; i++)
        rows |= kl_is_once_a_row(loop, &loop->outputs[i]);
    for (int axis = loop->n_axes - 1; axis >= 0; axis--) {
        int inner = loop->n_axes - loop->n_outer;
        if (loop->extent[axis] == 1 && loop->n_axes > 1 && (axis < loop->n_outer || inner > 1 || !rows))
            drop_axis(loop, axis);
    }
    for (int axis = loop->n_axes - 2; axis >= 0; axis--) {
        if (rows && axis == loop->n_outer - 1)
            continue;
        if (!for_all_views(loop, crosses_as_one, axis, loop->extent[axis + 1]))
            continue;
        int64_t merged = loop->extent[axis] * loop->extent[axis + 1];
        drop_axis(loop, axis);                            /* the strides of the inner axis stay */
        loop->extent[axis] = merged;
    }
    if (!rows) {                                          /* the split means nothing: all but the last axis are outer */
        loop->n_outer = loop->n_axes - 1;
        for (int i = 0; i < loop->n_exprs; i++) {
            kl_expr *expr = &loop->exprs[i];
            expr->row = expr->kind != KL_PRODUCT && expr->view.stride[loop->n_axes - 1] == 0;
            for (int j = 0; j < loop->n_outputs; j++)     /* until now this is a sum over every index, not over rows */
                expr->row &= loop->outputs[j].kind != KL_SUM_ALL || loop->outputs[j].expr != i;
            for (int j = 0; j < expr->n_args; j++)
                expr->row &= loop->exprs[expr->args[j]].row;
            for (int j = 0; j < expr->view.n_dynamic; j++)
                expr->row &= loop->exprs[expr->view.dynamic[j].expr].row;
        }
    }
}

/* -- sums in parts -------------------------------------------------------------------------------------------------------- */

kl_loop kl_finish_sums(const kl_program *program, base_arena *arena, const kl_loop *loop, kl_output_kind kind, const int64_t *offset, int64_t parts)
{
    int inner = kind == KL_SUM_OUTER ? loop->n_axes - loop->n_outer : 0;
    kl_loop sum = { .n_axes = inner + 1, .n_outer = inner };
    sum.exprs = ARENA_NEW(arena, kl_expr, 3 * loop->n_outputs);
    sum.outputs = ARENA_NEW(arena, kl_output, loop->n_outputs);
    for (int i = 0; i < inner; i++)
        sum.extent[i] = loop->extent[loop->n_outer + i];
    sum.extent[inner] = MAX(parts, 1);
    for (int i = 0; i < loop->n_outputs; i++) {
        const kl_output *o = &loop->outputs[i];
        if (o->kind != kind)
            continue;
        ir_dtype dtype = loop->exprs[o->expr].dtype, wide = dtype == IR_BF16 ? IR_F32 : dtype;
        kl_view from = { .buffer = program->n_buffers, .offset = parts ? offset[i] / ir_dtype_bytes(wide) : 0 }, to = { .buffer = o->view.buffer, .offset = o->view.offset };
        int64_t dense = 1;
        for (int a = inner - 1; a >= 0; a--) {
            from.stride[a] = dense;
            dense *= sum.extent[a];
            to.stride[a] = o->view.stride[loop->n_outer + a];
        }
        from.stride[inner] = dense;
        CHECK(o->view.n_dynamic == 0, "expected a sum not to go to a dynamic place");
        int at = sum.n_exprs;
        sum.exprs[at] = (kl_expr){ .kind = KL_LOAD, .dtype = wide, .view = from };
        if (parts == 0)                                    /* of nothing: the sum is 0, and not left as it was */
            sum.exprs[at] = (kl_expr){ .kind = KL_VALUE, .dtype = wide, .view.buffer = -1, .row = true };
        sum.exprs[at + 1] = (kl_expr){ .kind = KL_REDUCE, .op = OP_reduce_sum, .dtype = wide, .n_args = 1, .args = { at }, .view.buffer = -1, .row = true };
        sum.n_exprs += 2;
        if (wide != dtype)
            sum.exprs[sum.n_exprs++] = (kl_expr){ .kind = KL_OP, .op = OP_cast, .dtype = dtype, .n_args = 1, .args = { at + 1 }, .view.buffer = -1, .row = true };
        sum.outputs[sum.n_outputs++] = (kl_output){ KL_STORE, sum.n_exprs - 1, to, o->accumulate };
    }
    return sum;
}
