/* What becomes of a finished tile: a loop over its rows, each row two vectors, which hands the sums to the caller's callback
 * and adds up what that asks for.
 *
 * The micro-kernel leaves its sums in a small buffer in the first-level cache, from where this loop reads them, and so there is one copy
 * of the epilogue's code for tiles of any height, where code inside the micro-kernel would be there 24 times. Where C is the sums and
 * no more, micro-kernels store whole tiles to C themselves (cpu_gemm_emit_direct): what the 24 stores and loads and the call cost is
 * a twentieth of a tile with 128 k in bf16, and a tenth with 65.
 *
 * Column sums: within a tile, rows are added in order, from 0; the tiles of a block of rows are added in order to partial,
 * and the blocks in order by cpu_gemm_run. Row sums: each vector's terms lane by lane, then its lanes (cpu_vsum). */
#include "backend_cpu/gemm_emit.h"

typedef struct {
    emitter e;
    const cpu_gemm_finish *finish;
    int vectors;                                 /* of a row of the tile */
    value sums, user, batch, row, column, rows, columns, partial, partial_stride, first;     /* of cpu_gemm_tile */
} finisher;

static value zero_of(LLVMTypeRef type) { return LLVMConstNull(type); }

/* The tile's row i. carried: the column sums so far, [sum][vector]; comes back with this row added. */
static void emit_row(finisher *f, value i, value masks[2], value carried[CPU_GEMM_SUMS][2])
{
    const emitter *e = &f->e;
    const cpu_gemm_finish *finish = f->finish;
    LLVMBuilderRef builder = e->v.builder;
    LLVMTypeRef vector = cpu_vtype(&e->v, e->sum);
    int bytes = e->v.lanes * (LLVMGetTypeKind(e->sum) == LLVMDoubleTypeKind ? 8 : 4);
    value from = advance(e, f->sums, imul_constant(e, i, f->vectors * bytes)), row_sums[CPU_GEMM_SUMS];
    cpu_gemm_place at = {.vector = &e->v, .user = f->user, .batch = f->batch, .row = iadd(e, f->row, i)};

    for (int j = 0; j < f->vectors; j++) {
        value sum = LLVMBuildLoad2(builder, vector, advance(e, from, constant(e, j * bytes)), "");
        value columns[CPU_GEMM_SUMS], rows[CPU_GEMM_SUMS];
        at.column = iadd_constant(e, f->column, j * e->v.lanes);
        at.mask = masks[j];
        finish->element(finish->context, &at, sum, columns, rows);
        for (int s = 0; s < finish->column_sums; s++)
            carried[s][j] = LLVMBuildFAdd(builder, carried[s][j], columns[s], "");
        for (int s = 0; s < finish->row_sums; s++) {
            if (at.mask)
                rows[s] = LLVMBuildSelect(builder, at.mask, rows[s], zero_of(vector), "");
            row_sums[s] = j == 0 ? rows[s] : LLVMBuildFAdd(builder, row_sums[s], rows[s], "");
        }
    }
    if (finish->row_sums > 0) {
        for (int s = 0; s < finish->row_sums; s++)
            row_sums[s] = cpu_vsum(&e->v, row_sums[s]);
        at.column = f->column, at.mask = NULL;
        value tile = LLVMBuildSDiv(builder, f->column, constant(e, f->vectors * e->v.lanes), "");
        finish->row_end(finish->context, &at, tile, row_sums);
    }
}

/* partial (+)= the column sums of this tile; whole vectors, for which partial has room. */
static void add_to_partial(finisher *f, value carried[CPU_GEMM_SUMS][2])
{
    const emitter *e = &f->e;
    LLVMBuilderRef builder = e->v.builder;
    LLVMTypeRef vector = cpu_vtype(&e->v, e->sum);
    int element = LLVMGetTypeKind(e->sum) == LLVMDoubleTypeKind ? 8 : 4;
    value first = LLVMBuildICmp(builder, LLVMIntNE, f->first, constant(e, 0), "");
    for (int s = 0; s < f->finish->column_sums; s++)
        for (int j = 0; j < f->vectors; j++) {
            value row = imul_constant(e, f->partial_stride, s), offset = iadd(e, row, iadd_constant(e, f->column, j * e->v.lanes));
            value to = advance(e, f->partial, imul_constant(e, offset, element));
            value old = LLVMBuildLoad2(builder, vector, to, "");
            LLVMSetAlignment(old, (unsigned)element);
            value sum = LLVMBuildFAdd(builder, old, carried[s][j], "");
            sum = LLVMBuildSelect(builder, first, carried[s][j], sum, "");
            LLVMSetAlignment(LLVMBuildStore(builder, sum, to), (unsigned)element);
        }
}

/* All rows of the tile; masked where columns, how many there are, is not NULL. */
static void emit_rows(finisher *f, value columns)
{
    const emitter *e = &f->e;
    LLVMBuilderRef builder = e->v.builder;
    LLVMTypeRef vector = cpu_vtype(&e->v, e->sum);
    value masks[2] = {NULL, NULL}, carried[CPU_GEMM_SUMS][2], phis[CPU_GEMM_SUMS][2];
    for (int j = 0; columns && j < f->vectors; j++) {
        value left = isub(e, columns, constant(e, j * e->v.lanes));
        value some = LLVMBuildSelect(builder, is_less(e, left, constant(e, 0)), constant(e, 0), left, "");
        masks[j] = cpu_vmask(&e->v, some);
    }
    block before = LLVMGetInsertBlock(builder), body = new_block(e), after = new_block(e);
    LLVMBuildBr(builder, body);                  /* a tile has at least one row */
    go_on_at(e, body);
    value i = LLVMBuildPhi(builder, e->i64, "");
    for (int s = 0; s < f->finish->column_sums; s++)
        for (int j = 0; j < f->vectors; j++)
            carried[s][j] = phis[s][j] = LLVMBuildPhi(builder, vector, "");
    emit_row(f, i, masks, carried);
    value next = iadd_constant(e, i, 1);
    block last = LLVMGetInsertBlock(builder), from[] = {before, last};
    LLVMAddIncoming(i, (value[]){constant(e, 0), next}, from, 2);
    for (int s = 0; s < f->finish->column_sums; s++)
        for (int j = 0; j < f->vectors; j++)
            LLVMAddIncoming(phis[s][j], (value[]){zero_of(vector), carried[s][j]}, from, 2);
    LLVMBuildCondBr(builder, is_less(e, next, f->rows), body, after);
    go_on_at(e, after);
    if (f->finish->column_sums > 0)
        add_to_partial(f, carried);
}

value cpu_gemm_emit_epilogue(LLVMModuleRef module, cpu_isa isa, ir_dtype dtype, const cpu_gemm_finish *finish, const char *name)
{
    CHECK(finish->column_sums <= CPU_GEMM_SUMS && finish->row_sums <= CPU_GEMM_SUMS, "expected at most %d sums of a kind", CPU_GEMM_SUMS);
    cpu_gemm_tile_shape tile = cpu_gemm_tile_of(isa, dtype);
    finisher f = {.e = begin_function(module, isa, dtype, name, "p"), .finish = finish, .vectors = tile.columns / tile.lanes};
    if (isa >= CPU_AVX512) {                     /* a row is one vector of twice the lanes: what the two of it wait for falls together */
        f.e.v.lanes *= f.vectors;
        f.vectors = 1;
    }
    const emitter *e = &f.e;
    value record = LLVMGetParam(e->function, 0);
    f.sums = POINTER_FIELD(e, record, cpu_gemm_tile, sums);
    f.user = POINTER_FIELD(e, record, cpu_gemm_tile, user);
    f.batch = FIELD(e, record, cpu_gemm_tile, batch);
    f.row = FIELD(e, record, cpu_gemm_tile, row);
    f.column = FIELD(e, record, cpu_gemm_tile, column);
    f.rows = FIELD(e, record, cpu_gemm_tile, rows);
    f.columns = FIELD(e, record, cpu_gemm_tile, columns);
    f.partial = POINTER_FIELD(e, record, cpu_gemm_tile, partial);
    f.partial_stride = FIELD(e, record, cpu_gemm_tile, partial_stride);
    f.first = FIELD(e, record, cpu_gemm_tile, first);

    if (isa >= CPU_AVX512) {                     /* masks cost nothing */
        emit_rows(&f, f.columns);
    } else {
        block whole = new_block(e), part = new_block(e), end = new_block(e);
        LLVMBuildCondBr(e->v.builder, is_less(e, f.columns, constant(e, tile.columns)), part, whole);
        go_on_at(e, whole);
        emit_rows(&f, NULL);
        LLVMBuildBr(e->v.builder, end);
        go_on_at(e, part);
        emit_rows(&f, f.columns);
        LLVMBuildBr(e->v.builder, end);
        go_on_at(e, end);
    }
    end_function(&f.e);
    return f.e.function;
}

/* -- the plain epilogue ---------------------------------------------------------------------------------------------- */

void cpu_gemm_store_plain(void *context, const cpu_gemm_place *at, value sum, value *columns, value *rows)
{
    (void)columns, (void)rows;
    const cpu_gemm_store_class *class = context;
    const cpu_vector_env *v = at->vector;
    LLVMTypeRef i64 = LLVMTypeOf(at->row), i8 = LLVMInt8TypeInContext(v->context), pointer = LLVMPointerTypeInContext(v->context, 0);
    bool half = class->dtype == IR_BF16;
    LLVMTypeRef element = half ? LLVMInt16TypeInContext(v->context) : LLVMGetElementType(LLVMTypeOf(sum));
    value row_at = LLVMConstInt(i64, offsetof(cpu_gemm_c, row_stride), 0), batch_at = LLVMConstInt(i64, offsetof(cpu_gemm_c, batch_stride), 0);
    value c = LLVMBuildLoad2(v->builder, pointer, at->user, "");
    value row_stride = LLVMBuildLoad2(v->builder, i64, LLVMBuildGEP2(v->builder, i8, at->user, &row_at, 1, ""), "");
    value batch_stride = LLVMBuildLoad2(v->builder, i64, LLVMBuildGEP2(v->builder, i8, at->user, &batch_at, 1, ""), "");
    value batch = LLVMBuildMul(v->builder, at->batch, batch_stride, ""), row = LLVMBuildMul(v->builder, at->row, row_stride, "");
    value offset = LLVMBuildAdd(v->builder, batch, row, "");
    offset = LLVMBuildAdd(v->builder, offset, at->column, "");
    value to = LLVMBuildGEP2(v->builder, element, c, &offset, 1, "");
    if (class->accumulate) {
        value old = cpu_vload(v, element, to, at->mask);
        sum = LLVMBuildFAdd(v->builder, half ? cpu_vf32_from_bf16(v, old) : old, sum, "");
    }
    cpu_vstore(v, half ? cpu_vbf16_from_f32(v, sum) : sum, to, at->mask);
}
