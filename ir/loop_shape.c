/* Merges axes of a loop that every view crosses as one: for each view, stepping the outer axis is the same as running off the
 * end of the inner one. Drops axes of one. Outer and inner axes merge only among themselves where the loop has rows.
 *
 *     axes 8, 64 | 384 with strides 24576, 384, 1       axes 512 | 384 with strides 384, 1 */
#include "ir/kernels.h"

#include <string.h>

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

static bool has_rows(const kl_loop *loop)
{
    for (int i = 0; i < loop->n_exprs; i++)
        if (loop->exprs[i].kind == KL_REDUCE)
            return true;
    for (int i = 0; i < loop->n_outputs; i++)
        if (loop->outputs[i].kind == KL_SUM_OUTER)
            return true;
    return false;
}

/* A row value may be stored, and is summed, once a row. */
static bool is_once_a_row(const kl_loop *loop, const kl_output *output)
{
    bool rows_have_more = false;
    for (int i = loop->n_outer; i < loop->n_axes; i++) {
        if (output->view.stride[i] != 0)
            return false;
        rows_have_more |= loop->extent[i] != 1;
    }
    return rows_have_more && loop->exprs[output->expr].row;
}

void kl_merge_axes(kl_loop *loop)
{
    bool rows = has_rows(loop);
    for (int i = 0; i < loop->n_outputs; i++)
        rows |= is_once_a_row(loop, &loop->outputs[i]);
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
