/* Index forms: how the index of an element of one tensor follows from the indices of a kernel's axes.
 *
 * A view op changes the form, not the data: transpose permutes the forms of the axes, slice adds to an offset, broadcast drops
 * an axis, and reshape merges the coordinates into a linear index and splits that again. Merging always works. Splitting
 * works where the axes of the kernel do not straddle the dims:
 *
 *     linear = 64 b + t, t < 64, into dims [8, 64]:   (b, t)
 *     linear = n, n < 512, into dims [8, 64]:         no; but if n were two axes (n0, n1) of 8 and 64: (n0, n1)
 *
 * The second answer is FORM_REFINE: the caller splits the axis and starts again. */
#include "ir/lower.h"

#include <string.h>

index_form kl_form_constant(int64_t value) { return (index_form){ .offset = value }; }

index_form kl_form_axis(int axis)
{
    index_form form = {0};
    form.coef[axis] = 1;
    return form;
}

bool kl_form_add(index_form *into, const index_form *form, int64_t factor, int n_axes)
{
    into->offset += form->offset * factor;
    for (int i = 0; i < n_axes; i++)
        into->coef[i] += form->coef[i] * factor;
    for (int i = 0; i < form->n_dynamic; i++) {
        if (into->n_dynamic == KL_MAX_DYNAMIC)
            return false;
        into->dynamic[into->n_dynamic] = form->dynamic[i];
        into->dynamic[into->n_dynamic++].stride *= factor;
    }
    return true;
}

bool kl_form_merge(const index_form *coordinate, const int64_t *dim, int rank, int n_axes, index_form *linear)
{
    index_form sum = {0};
    int64_t stride = 1;
    for (int i = rank - 1; i >= 0; i--) {
        if (!kl_form_add(&sum, &coordinate[i], stride, n_axes))
            return false;
        stride *= dim[i];
    }
    *linear = sum;
    return true;
}

/* linear = high * size + low with 0 <= low < size. */
static form_answer split_once(const index_space *space, const index_form *linear, int64_t size, index_form *high, index_form *low,
                              form_refinement *refine)
{
    *high = (index_form){ .offset = linear->offset / size };
    *low = (index_form){ .offset = linear->offset % size };
    int64_t most = low->offset;
    int widest = -1;
    for (int i = 0; i < space->n_axes; i++) {
        int64_t coef = linear->coef[i];
        if (coef == 0)
            continue;
        if (coef % size == 0) {
            high->coef[i] = coef / size;
        } else {
            low->coef[i] = coef;
            int64_t reach = coef * (space->extent[i] - 1);
            most += reach;
            if (widest < 0 || reach > low->coef[widest] * (space->extent[widest] - 1))
                widest = i;
        }
    }
    for (int i = 0; i < linear->n_dynamic; i++) {
        kl_dynamic term = linear->dynamic[i];
        if (term.stride % size == 0) {
            term.stride /= size;
            high->dynamic[high->n_dynamic++] = term;
        } else {
            low->dynamic[low->n_dynamic++] = term;
            most += term.stride * term.limit;
        }
    }
    if (most < size)
        return FORM_OK;
    /* The widest axis straddles the boundary: cut it where its inner part just fills size. */
    if (widest < 0)
        return FORM_NONE;
    int64_t coef = low->coef[widest], inner = size / coef;
    if (size % coef != 0 || inner <= 1 || inner >= space->extent[widest] || space->extent[widest] % inner != 0)
        return FORM_NONE;
    *refine = (form_refinement){ widest, inner };
    return FORM_REFINE;
}

form_answer kl_form_split(const index_space *space, const index_form *linear, const int64_t *dim, int rank, index_form *coordinate,
                          form_refinement *refine)
{
    index_form rest = *linear;
    for (int i = rank - 1; i >= 0; i--) {
        if (dim[i] == 0) {                      /* no elements: any index will do */
            coordinate[i] = kl_form_constant(0);
            continue;
        }
        if (i == 0) {
            coordinate[0] = rest;
            break;
        }
        index_form high;
        form_answer answer = split_once(space, &rest, dim[i], &high, &coordinate[i], refine);
        if (answer != FORM_OK)
            return answer;
        rest = high;
    }
    return FORM_OK;
}

index_form kl_form_linear(const index_space *space, int from, int to)
{
    index_form form = {0};
    int64_t stride = 1;
    for (int i = to - 1; i >= from; i--) {
        form.coef[i] = space->extent[i] == 1 ? 0 : stride;
        stride *= space->extent[i];
    }
    return form;
}

bool kl_space_refine(index_space *space, const form_refinement *refine)
{
    if (space->n_axes == KL_MAX_AXES)
        return false;
    int axis = refine->axis;
    memmove(&space->extent[axis + 1], &space->extent[axis], sizeof(space->extent[0]) * (size_t)(space->n_axes - axis));
    space->extent[axis] /= refine->inner;
    space->extent[axis + 1] = refine->inner;
    space->n_axes++;
    if (axis < space->n_outer)
        space->n_outer++;
    return true;
}
