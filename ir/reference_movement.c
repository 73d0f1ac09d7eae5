/* The interpreter's ops that compute nothing: movement and indexing. Movement is one function, a copy between two strided views;
 * an op only says what the views are. */
#include "ir/ir.h"

#include <string.h>

/* -- a strided copy ---------------------------------------------------------------------------------------------------- */

typedef struct {
    int rank, element;                                  /* element: bytes */
    int64_t dim[IR_MAX_RANK], to[IR_MAX_RANK], from[IR_MAX_RANK];           /* strides in bytes; from may be 0 */
} strided;

static void drop_axis(strided *s, int axis)
{
    s->rank--;
    for (int i = axis; i < s->rank; i++)
        s->dim[i] = s->dim[i + 1], s->to[i] = s->to[i + 1], s->from[i] = s->from[i + 1];
}

/* The same copy in fewer axes: those of dim 1 go, and neighbours that step as one become one. Where the source runs along
 * another axis than the last, that axis is put beside the last one, so that copy_plane sees both. */
static void simplify(strided *s)
{
    for (int i = s->rank - 1; i >= 0; i--)
        if (s->dim[i] == 1)
            drop_axis(s, i);
    for (int i = s->rank - 1; i > 0; i--)
        if (s->to[i - 1] == s->to[i] * s->dim[i] && s->from[i - 1] == s->from[i] * s->dim[i]) {
            s->to[i - 1] = s->to[i];
            s->from[i - 1] = s->from[i];
            s->dim[i - 1] *= s->dim[i];
            drop_axis(s, i);
        }
    for (int i = s->rank - 3; i >= 0; i--)
        if (s->from[i] == s->element && s->from[s->rank - 1] != s->element)
            for (int j = i; j < s->rank - 2; j++) {
                int64_t dim = s->dim[j], to = s->to[j], from = s->from[j];
                s->dim[j] = s->dim[j + 1], s->to[j] = s->to[j + 1], s->from[j] = s->from[j + 1];
                s->dim[j + 1] = dim, s->to[j + 1] = to, s->from[j + 1] = from;
            }
    while (s->rank < 2) {                               /* copy_plane has two axes */
        for (int i = s->rank; i > 0; i--)
            s->dim[i] = s->dim[i - 1], s->to[i] = s->to[i - 1], s->from[i] = s->from[i - 1];
        s->dim[0] = 1, s->to[0] = s->from[0] = s->element;
        s->rank++;
    }
}

/* Squares small enough that the lines read along one axis are still in the cache when the next line along the other needs them. */
#define COPY_PLANE(type)                                                                        \
    static void copy_plane_##type(const int64_t *dim, const int64_t *to, const int64_t *from, char *dst, const char *src) \
    {                                                                                           \
        enum { SIDE = 32 };                                                                     \
        for (int64_t i = 0; from[1] == 0 && i < dim[0]; i++) {      /* an element, repeated */  \
            const type value = *(const type *)(src + i * from[0]);                              \
            for (int64_t j = 0; j < dim[1]; j++)                                                \
                *(type *)(dst + i * to[0] + j * to[1]) = value;                                 \
        }                                                                                       \
        for (int64_t i0 = 0; from[1] != 0 && i0 < dim[0]; i0 += SIDE)                           \
            for (int64_t j0 = 0; j0 < dim[1]; j0 += SIDE)                                       \
                for (int64_t i = i0; i < MIN(i0 + SIDE, dim[0]); i++)                           \
                    for (int64_t j = j0; j < MIN(j0 + SIDE, dim[1]); j++)                       \
                        *(type *)(dst + i * to[0] + j * to[1]) = *(const type *)(src + i * from[0] + j * from[1]);  \
    }
COPY_PLANE(uint8_t)
COPY_PLANE(uint16_t)
COPY_PLANE(uint32_t)
COPY_PLANE(uint64_t)

static void copy_axes(const strided *s, int axis, char *dst, const char *src)
{
    const int64_t *dim = s->dim + axis, *to = s->to + axis, *from = s->from + axis;
    if (axis < s->rank - 2) {
        for (int64_t i = 0; i < dim[0]; i++)
            copy_axes(s, axis + 1, dst + i * to[0], src + i * from[0]);
    } else if (to[1] == s->element && from[1] == s->element) {
        for (int64_t i = 0; i < dim[0]; i++)
            memcpy(dst + i * to[0], src + i * from[0], (size_t)(dim[1] * s->element));
    } else {
        switch (s->element) {
        case 1: copy_plane_uint8_t(dim, to, from, dst, src); break;
        case 2: copy_plane_uint16_t(dim, to, from, dst, src); break;
        case 4: copy_plane_uint32_t(dim, to, from, dst, src); break;
        case 8: copy_plane_uint64_t(dim, to, from, dst, src); break;
        default: CHECK(false, "copy_axes: expected an element of 1, 2, 4 or 8 bytes, got %d", s->element);
        }
    }
}

/* Copies an area of these dims. Strides are in elements; the offsets (in elements too) are where the area begins. */
static void copy_area(ir_dtype dtype, int rank, const int64_t *dim, void *dst, int64_t dst_offset, const int64_t *to,
                      const void *src, int64_t src_offset, const int64_t *from)
{
    strided s = { .rank = rank, .element = ir_dtype_bytes(dtype) };
    for (int i = 0; i < rank; i++) {
        if (dim[i] == 0)
            return;
        s.dim[i] = dim[i], s.to[i] = to[i] * s.element, s.from[i] = from[i] * s.element;
    }
    simplify(&s);
    copy_axes(&s, 0, (char *)dst + dst_offset * s.element, (const char *)src + src_offset * s.element);
}

static int64_t offset_of(int rank, const int64_t *index, const int64_t *stride)
{
    int64_t offset = 0;
    for (int i = 0; i < rank; i++)
        offset += index[i] * stride[i];
    return offset;
}

/* -- movement ---------------------------------------------------------------------------------------------------------- */

/* reshape, stop_gradient, custom_gradient: the first operand's bytes. The interpreter may have given the result its memory. */
void ref_reshape(const ir_node *node, const ir_array *const *args, ir_array *result)
{
    (void)node;
    if (result->data != args[0]->data)
        memcpy(result->data, args[0]->data, (size_t)ir_type_bytes(&result->type));
}

void ref_transpose(const ir_node *node, const ir_array *const *args, ir_array *result)
{
    int64_t to[IR_MAX_RANK], stride[IR_MAX_RANK], from[IR_MAX_RANK];
    ir_row_major(&result->type, to);
    ir_row_major(&args[0]->type, stride);
    for (int i = 0; i < result->type.rank; i++)
        from[i] = stride[node->attr.axes[i]];
    copy_area(result->type.dtype, result->type.rank, result->type.dim, result->data, 0, to, args[0]->data, 0, from);
}

void ref_broadcast(const ir_node *node, const ir_array *const *args, ir_array *result)
{
    int64_t to[IR_MAX_RANK], stride[IR_MAX_RANK], from[IR_MAX_RANK] = { 0 };
    ir_row_major(&result->type, to);
    ir_row_major(&args[0]->type, stride);
    for (int i = 0; i < args[0]->type.rank; i++)
        from[node->attr.axes[i]] = args[0]->type.dim[i] == 1 ? 0 : stride[i];
    copy_area(result->type.dtype, result->type.rank, result->type.dim, result->data, 0, to, args[0]->data, 0, from);
}

void ref_slice(const ir_node *node, const ir_array *const *args, ir_array *result)
{
    int64_t to[IR_MAX_RANK], from[IR_MAX_RANK];
    int rank = result->type.rank;
    ir_row_major(&result->type, to);
    ir_row_major(&args[0]->type, from);
    copy_area(result->type.dtype, rank, result->type.dim, result->data, 0, to,
              args[0]->data, offset_of(rank, node->attr.start, from), from);
}

void ref_constant(const ir_node *node, const ir_array *const *args, ir_array *result);

void ref_pad(const ir_node *node, const ir_array *const *args, ir_array *result)
{
    int64_t to[IR_MAX_RANK], from[IR_MAX_RANK];
    int rank = result->type.rank;
    ref_constant(node, NULL, result);
    ir_row_major(&result->type, to);
    ir_row_major(&args[0]->type, from);
    copy_area(result->type.dtype, rank, args[0]->type.dim, result->data, offset_of(rank, node->attr.start, to), to,
              args[0]->data, 0, from);
}

void ref_concatenate(const ir_node *node, const ir_array *const *args, ir_array *result)
{
    int64_t to[IR_MAX_RANK], from[IR_MAX_RANK], at = 0;
    ir_row_major(&result->type, to);
    for (int i = 0; i < node->n_args; i++) {
        ir_row_major(&args[i]->type, from);
        copy_area(result->type.dtype, result->type.rank, args[i]->type.dim, result->data, at * to[node->attr.axis], to,
                  args[i]->data, 0, from);
        at += args[i]->type.dim[node->attr.axis];
    }
}

/* Scalar starts, each moved so that an area of dims part lies within dims whole. */
static void read_starts(const ir_array *const *starts, const ir_type *whole, const ir_type *part, int64_t *start)
{
    for (int i = 0; i < whole->rank; i++)
        start[i] = MAX(0, MIN((int64_t)*(const int32_t *)starts[i]->data, whole->dim[i] - part->dim[i]));
}

void ref_dynamic_slice(const ir_node *node, const ir_array *const *args, ir_array *result)
{
    (void)node;
    int64_t to[IR_MAX_RANK], from[IR_MAX_RANK], start[IR_MAX_RANK];
    int rank = result->type.rank;
    ir_row_major(&result->type, to);
    ir_row_major(&args[0]->type, from);
    read_starts(args + 1, &args[0]->type, &result->type, start);
    copy_area(result->type.dtype, rank, result->type.dim, result->data, 0, to, args[0]->data, offset_of(rank, start, from), from);
}

void ref_update_slice(const ir_node *node, const ir_array *const *args, ir_array *result)
{
    int64_t to[IR_MAX_RANK], from[IR_MAX_RANK], start[IR_MAX_RANK];
    int rank = result->type.rank;
    ref_reshape(node, args, result);
    ir_row_major(&result->type, to);
    ir_row_major(&args[1]->type, from);
    read_starts(args + 2, &result->type, &args[1]->type, start);
    copy_area(result->type.dtype, rank, args[1]->type.dim, result->data, offset_of(rank, start, to), to, args[1]->data, 0, from);
}

/* -- indexing ---------------------------------------------------------------------------------------------------------- */

/* x[outer, dim, inner] on one side, [outer, indices, inner] on the other. Where dim is 0 there are no indices: the shape rule sees to it. */
typedef struct { int64_t outer, dim, inner, n_indices; const int32_t *index; } indexing;

static indexing indexing_of(const ir_node *node, const ir_array *x, const ir_array *indices)
{
    indexing by = { .outer = 1, .dim = x->type.dim[node->attr.axis], .inner = 1,
                    .n_indices = ir_type_count(&indices->type), .index = indices->data };
    for (int i = 0; i < x->type.rank; i++)
        if (i != node->attr.axis)
            *(i < node->attr.axis ? &by.outer : &by.inner) *= x->type.dim[i];
    return by;
}

static int64_t nearest(const indexing *by, int64_t i) { return MAX(0, MIN((int64_t)by->index[i], by->dim - 1)); }

void ref_gather(const ir_node *node, const ir_array *const *args, ir_array *result)
{
    indexing by = indexing_of(node, args[0], args[1]);
    size_t row = (size_t)(by.inner * ir_dtype_bytes(result->type.dtype));
    for (int64_t o = 0; o < by.outer; o++)
        for (int64_t i = 0; i < by.n_indices; i++)
            memcpy((char *)result->data + (size_t)(o * by.n_indices + i) * row,
                   (const char *)args[0]->data + (size_t)(o * by.dim + nearest(&by, i)) * row, row);
}

#define WRAPPED_SUM(x, y) (x) + (y)
#define BF16_SUM(x, y)    ir_f32_to_bf16(ir_bf16_to_f32(x) + ir_bf16_to_f32(y))
#define SCATTER_ADD(type, SUM)                                                                                      \
    for (int64_t o = 0; o < by.outer; o++)                                                                          \
        for (int64_t i = 0; i < by.n_indices; i++) {                                                                \
            type *y = (type *)result->data + (o * by.dim + nearest(&by, i)) * by.inner;                             \
            const type *x = (const type *)args[2]->data + (o * by.n_indices + i) * by.inner;                        \
            for (int64_t j = 0; j < by.inner; j++)                                                                  \
                y[j] = SUM(y[j], x[j]);                                                                             \
        }

void ref_scatter_add(const ir_node *node, const ir_array *const *args, ir_array *result)
{
    indexing by = indexing_of(node, args[0], args[1]);
    ref_reshape(node, args, result);
    switch (result->type.dtype) {
    case IR_F32:  SCATTER_ADD(float, WRAPPED_SUM) break;
    case IR_F64:  SCATTER_ADD(double, WRAPPED_SUM) break;
    case IR_BF16: SCATTER_ADD(uint16_t, BF16_SUM) break;
    case IR_I32:  SCATTER_ADD(uint32_t, WRAPPED_SUM) break;
    case IR_BOOL: case IR_TUPLE:
        CHECK(false, "%%%d scatter_add: expected numbers, got %s", node->id, ir_dtype_name(result->type.dtype));
    }
}
