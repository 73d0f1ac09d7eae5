/* Products: which algorithm takes which, for legalise.c to ask; contraction.c runs OpenBLAS, gemm_contraction.c the generated GEMM. */
#ifndef CPU_CONTRACTION_H
#define CPU_CONTRACTION_H

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

/* "SkylakeX", the kernels that OpenBLAS has chosen, by the CPU or by OPENBLAS_CORETYPE. */
const char *cpu_blas_core(void);
/* OpenBLAS runs inside the pool, with one thread a task. */
void cpu_blas_begin(void);

#endif
