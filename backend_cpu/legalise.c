/* Looks at the list once before memory is planned, and splits off what the chosen algorithms cannot take: an operand that OpenBLAS
 * cannot read becomes a loop that writes it out and a plain operand; an epilogue becomes a plain product and a loop that reads it
 * (ir/split_products.c). Where products are generated code, what is near them joins them first. */
#include "backend_cpu/contraction.h"
#include "backend_cpu/gemm.h"

#include <stdlib.h>
#include <string.h>

static void legalise_for_generated(void *context, kl_program *program, kl_kernel *kernel, kl_sequence *into)
{
    kl_contraction *c = &kernel->contraction;
    (void)context;
    c->algorithm = CPU_PRODUCT_GENERATED;
    kl_kernel *rest = cpu_gemm_takes_epilogue(c) ? NULL : kl_split_epilogue(program, kernel);
    kl_append(into, kernel);
    kl_append(into, rest);
}

static void legalise_for_openblas(void *context, kl_program *program, kl_kernel *kernel, kl_sequence *into)
{
    kl_contraction *c = &kernel->contraction;
    ir_dtype wide = c->dtype == IR_F64 ? IR_F64 : IR_F32;
    (void)context;
    c->algorithm = CPU_PRODUCT_OPENBLAS;
    if (!cpu_blas_takes_operand(c, CPU_OPERAND_A))
        kl_append(into, kl_split_operand(program, kernel, false, wide));
    if (!cpu_blas_takes_operand(c, CPU_OPERAND_B))
        kl_append(into, kl_split_operand(program, kernel, true, wide));
    c->dtype = wide;
    kl_kernel *rest = cpu_blas_takes_epilogue(c) ? NULL : kl_split_epilogue(program, kernel);
    kl_append(into, kernel);
    kl_append(into, rest);
}

/* The generated GEMM wherever there are vector units that it was written for. RAX_PRODUCTS=openblas or generated says otherwise: for
 * tests, and to compare the two. */
static bool choose_generated(const cpu_machine *machine)
{
    const char *forced = getenv("RAX_PRODUCTS");
    return forced ? !strcmp(forced, "generated") : machine->isa >= CPU_AVX2;
}

void cpu_legalise(kl_program *program, const cpu_machine *machine)
{
    bool generated = choose_generated(machine);
    if (generated) {
        kl_fuse_epilogues(program);
        kl_store_derived(program);
        if (cpu_gemm_unit_of(machine->isa, IR_BF16).k_per_unit == 2)      /* else elements are widened again while they are packed */
            kl_fold_casts(program);
    }
    kl_rewrite_products(program, generated ? legalise_for_generated : legalise_for_openblas, NULL);
    kl_list_loops(program, 0);
    kl_renumber(program);
}
