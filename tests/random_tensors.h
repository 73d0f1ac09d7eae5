/* Tensors of noise, for the tests of whole programs. Who sets state_of_noise has the same ones again. */
#ifndef TESTS_RANDOM_TENSORS_H
#define TESTS_RANDOM_TENSORS_H

#include "tests/tracer_support.h"

static rax_dtype D;                                 /* of random_tensor */

static uint32_t state_of_noise;
static inline double noise(void)                    /* in [-1, 1) */
{
    state_of_noise = state_of_noise * 1664525u + 1013904223u;
    return (int32_t)(state_of_noise ^ state_of_noise >> 15) / 2147483648.0;
}

static inline void set_item(rax_tensor tensor, int64_t i, double value)
{
    if (rax_dtype_of(tensor) == RAX_F64)
        ((double *)rax_data(tensor))[i] = value;
    else
        ((float *)rax_data(tensor))[i] = (float)value;
}

static inline rax_tensor random_tensor(rax_shape shape, double scale)
{
    rax_tensor tensor = rax_tensor_new(D, shape);
    for (int64_t i = 0; i < rax_count(tensor); i++)
        set_item(tensor, i, scale * noise());
    return tensor;
}

static inline rax_tensor random_ids(rax_shape shape, int below)
{
    rax_tensor tensor = rax_tensor_new(RAX_I32, shape);
    for (int64_t i = 0; i < rax_count(tensor); i++)
        ((int32_t *)rax_data(tensor))[i] = (int)((noise() + 1) / 2 * below) % below;
    return tensor;
}

#endif
