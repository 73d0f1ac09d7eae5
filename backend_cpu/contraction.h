/* Products: which algorithm takes which, for legalise.c to ask; contraction.c runs OpenBLAS (blas.c opens it), gemm_contraction.c the
 * generated GEMM. */
#ifndef CPU_CONTRACTION_H
#define CPU_CONTRACTION_H

#include <cblas.h>

#include "backend_cpu/backend.h"

/* kl_contraction.algorithm */
typedef enum { CPU_PRODUCT_OPENBLAS, CPU_PRODUCT_GENERATED } cpu_product_algorithm;

typedef enum { CPU_OPERAND_A, CPU_OPERAND_B } cpu_operand;

/* OpenBLAS takes f32 and f64, operands that it can read as they lie, and stores the sum and no more. */
bool cpu_blas_takes_operand(const kl_contraction *product, cpu_operand which);
bool cpu_blas_takes_epilogue(const kl_contraction *product);

/* The generated GEMM takes any operand. Of an epilogue not: values stored once a row; sums of another dtype than the product's; more sums
 * than CPU_GEMM_SUMS. */
bool cpu_gemm_takes_epilogue(const kl_contraction *product);
cpu_planner cpu_gemm_plan_contraction;

/* -- blas.c: OpenBLAS itself --------------------------------------------------------------------------------------------- */

typedef struct {
    __typeof__(cblas_sgemm) *sgemm;
    __typeof__(cblas_dgemm) *dgemm;
    const char *core;                        /* "SkylakeX", the kernels that it has chosen, by the CPU or by OPENBLAS_CORETYPE */
} cpu_blas;

/* Opens it at the first call, to run inside the pool with one thread a task. NULL and base_error where it is not there. */
const cpu_blas *cpu_blas_open(void);

#endif
