/* The micro-kernels: a tile of C in registers, one block of K.
 *
 * For each unit of K the full tile of AVX-512 loads two vectors of B and twelve elements of A, each into all lanes, and does
 * 24 multiply-adds: as many accumulators as leave registers for the operands, and enough to hide the latency of the
 * multiply-add (4 cycles, 2 a cycle) three times over. Height by two vectors (12x32 f32) loads 14 vectors for 24
 * multiply-adds; 6x64 does no better where measured (Zen 5, 262 and 263 of 265 GFLOP/s out of the second-level cache).
 *
 * Strides are arguments, so one kernel reads an operand packed or where it lies, either way up; the code generator keeps one
 * pointer to A and adds the strides to it, as many adds in a row as the multiply-adds take cycles. Those of one vector take less, and
 * there every fourth row begins anew (12x8: 11 cycles a unit otherwise, and 7 so). Where the rows of a full tile lie side by side, as in
 * a packed panel, there is a dense kernel without adds.
 *
 * A block whose rows are no multiple of the tile's height ends in tiles of less height, and rows are never read that do not
 * exist; columns beyond N are read as whatever stands in the panel, computed, and thrown away by the epilogue. Where they would be
 * half a vector or more of a panel, there are narrow kernels, whose last vector is of half the lanes: two of those take the time of
 * one whole where the multiplier is as wide as a whole one, or half as wide (65 columns on Zen 4, f32: 81 % of the peak at most, now 90). */
#include "backend_cpu/gemm_emit.h"

#include <stdio.h>

enum { MAX_HEIGHT = 12, MAX_VECTORS = 2, APART = 4 };

const char *cpu_gemm_micro_name(char name[32], ir_dtype dtype, int height, int columns)
{
    snprintf(name, 32, "gemm_%s_%dx%d", ir_dtype_name(dtype), height, columns);
    return name;
}

const char *cpu_gemm_dense_name(char name[32], ir_dtype dtype, int columns)
{
    snprintf(name, 32, "gemm_%s_dense_x%d", ir_dtype_name(dtype), columns);
    return name;
}

const char *cpu_gemm_direct_name(char name[32], ir_dtype dtype, ir_dtype c, bool dense)
{
    snprintf(name, 32, "gemm_%s%s_to_%s", ir_dtype_name(dtype), dense ? "_dense" : "", ir_dtype_name(c));
    return name;
}

/* One element of A in all lanes. */
static value broadcast(const emitter *e, LLVMTypeRef element, int align, value pointer)
{
    value x = LLVMBuildLoad2(e->v.builder, element, pointer, "");
    LLVMSetAlignment(x, (unsigned)align);
    return cpu_vsplat(&e->v, x);
}

/* The pointer, as one that the code generator does not know to lie a number of strides from another. */
static value apart(const emitter *e, value pointer)
{
    static const char name[] = "llvm.launder.invariant.group";
    LLVMTypeRef type = e->pointer;
    value function = LLVMGetIntrinsicDeclaration(e->v.module, LLVMLookupIntrinsicID(name, sizeof name - 1), &type, 1);
    return LLVMBuildCall2(e->v.builder, LLVMGlobalGetValueType(function), function, &pointer, 1, "");
}

/* To C, rows row_bytes apart, in its dtype. */
static void store_tile(const emitter *e, value *sums, int height, int vectors, ir_dtype c, value to, value row_bytes)
{
    const cpu_vector_env *v = &e->v;
    bool half = c == IR_BF16;
    for (int i = 0; i < height; i++, sums += vectors) {
        int bytes = v->lanes * ir_dtype_bytes(c);
        for (int j = 0; j < vectors; j += half ? vectors : 1) {
            value x = sums[j];
            if (half)
                x = vectors == 2 ? cpu_vbf16_from_two(v, sums[0], sums[1]) : cpu_vbf16_from_f32(v, x);
            LLVMSetAlignment(LLVMBuildStore(v->builder, x, advance(e, to, constant(e, j * bytes))), (unsigned)ir_dtype_bytes(c));
        }
        to = advance(e, to, row_bytes);
    }
}

/* columns: so many whole vectors, and half a one or none. c: the tile goes there, from zero; resume is C's row in bytes. */
static void emit_tile(LLVMModuleRef module, cpu_isa isa, ir_dtype dtype, int height, int columns, bool dense, const ir_dtype *c)
{
    char name[32];
    if (c)
        cpu_gemm_direct_name(name, dtype, *c, dense);
    else if (dense)
        cpu_gemm_dense_name(name, dtype, columns);
    else
        cpu_gemm_micro_name(name, dtype, height, columns);
    emitter e = begin_function(module, isa, dtype, name, "ipiipipipi");
    LLVMBuilderRef builder = e.v.builder;
    value f = e.function, units = LLVMGetParam(f, 0), a = LLVMGetParam(f, 1), a_row = LLVMGetParam(f, 2);
    value a_unit = LLVMGetParam(f, 3), b = LLVMGetParam(f, 4), b_unit = LLVMGetParam(f, 5), tile = LLVMGetParam(f, 6);
    value resume = LLVMGetParam(f, 7), soon = LLVMGetParam(f, 8), soon_step = LLVMGetParam(f, 9);
    bool pairs = cpu_gemm_unit_of(isa, dtype).k_per_unit == 2;
    int unit_bytes = cpu_gemm_unit_of(isa, dtype).bytes, vectors = base_divide_up(columns, e.v.lanes), n = height * vectors;
    LLVMTypeRef element = pairs ? e.i32 : e.sum, vector[MAX_VECTORS], b_vector[MAX_VECTORS];
    int vector_bytes = e.v.lanes * unit_bytes, row_bytes = MAX_VECTORS * vector_bytes, lanes[MAX_VECTORS];
    for (int j = 0; j < vectors; j++) {
        lanes[j] = MIN(e.v.lanes, columns - j * e.v.lanes);
        vector[j] = LLVMVectorType(e.sum, (unsigned)lanes[j]);
        b_vector[j] = LLVMVectorType(element, (unsigned)lanes[j]);
    }
    block entry = LLVMGetInsertBlock(builder), reload = new_block(&e), start = new_block(&e), loop = new_block(&e), end = new_block(&e);
    value old[MAX_HEIGHT * MAX_VECTORS], first[MAX_HEIGHT * MAX_VECTORS], sum[MAX_HEIGHT * MAX_VECTORS], next[MAX_HEIGHT * MAX_VECTORS];

    /* From zero, or from what the tile holds. */
    value resumes = c ? LLVMConstInt(LLVMInt1TypeInContext(e.v.context), 0, 0) : LLVMBuildICmp(builder, LLVMIntNE, resume, constant(&e, 0), "");
    LLVMBuildCondBr(builder, resumes, reload, start);
    go_on_at(&e, reload);
    for (int i = 0; i < n; i++) {
        old[i] = LLVMBuildLoad2(builder, vector[i % vectors], advance(&e, tile, constant(&e, i / vectors * row_bytes + i % vectors * vector_bytes)), "");
        LLVMSetAlignment(old[i], (unsigned)(lanes[i % vectors] * unit_bytes));
    }
    LLVMBuildBr(builder, start);
    go_on_at(&e, start);
    for (int i = 0; i < n; i++) {
        first[i] = LLVMBuildPhi(builder, vector[i % vectors], "");
        LLVMAddIncoming(first[i], (value[]){LLVMConstNull(vector[i % vectors]), old[i]}, (block[]){entry, reload}, 2);
    }
    LLVMBuildBr(builder, loop);

    go_on_at(&e, loop);
    value left = LLVMBuildPhi(builder, e.i64, ""), pa = LLVMBuildPhi(builder, e.pointer, ""), pb = LLVMBuildPhi(builder, e.pointer, "");
    value ps = LLVMBuildPhi(builder, e.pointer, "");
    for (int i = 0; i < n; i++)
        sum[i] = LLVMBuildPhi(builder, vector[i % vectors], "");
    prefetch(&e, ps);
    value bv[MAX_VECTORS], row = pa;
    for (int j = 0; j < vectors; j++) {
        bv[j] = LLVMBuildLoad2(builder, b_vector[j], advance(&e, pb, constant(&e, j * vector_bytes)), "");
        LLVMSetAlignment(bv[j], (unsigned)unit_bytes);
    }
    for (int i = 0; i < height; i++) {
        if (i > 0 && i % APART == 0 && !dense && vectors == 1)
            row = apart(&e, advance(&e, pa, imul_constant(&e, a_row, i)));
        else if (i > 0)
            row = advance(&e, row, dense ? constant(&e, unit_bytes) : a_row);
        value av = broadcast(&e, element, pairs ? 2 : unit_bytes, row);      /* pairs read in place may lie at any bf16 */
        for (int j = 0; j < vectors; j++) {
            value s = sum[i * vectors + j], x = lanes[j] == e.v.lanes ? av : cpu_vlanes(&e.v, av, av, 0, lanes[j]);
            next[i * vectors + j] = pairs ? cpu_vdot_pairs(&e.v, x, bv[j], s) : cpu_vfma(&e.v, x, bv[j], s);
        }
    }
    value next_soon = advance(&e, ps, soon_step);
    value fewer = isub(&e, left, constant(&e, 1)), next_a = advance(&e, pa, a_unit), next_b = advance(&e, pb, b_unit);
    LLVMBuildCondBr(builder, LLVMBuildICmp(builder, LLVMIntNE, fewer, constant(&e, 0), ""), loop, end);
    block from[] = {start, loop};
    LLVMAddIncoming(left, (value[]){units, fewer}, from, 2);
    LLVMAddIncoming(pa, (value[]){a, next_a}, from, 2);
    LLVMAddIncoming(pb, (value[]){b, next_b}, from, 2);
    LLVMAddIncoming(ps, (value[]){soon, next_soon}, from, 2);
    for (int i = 0; i < n; i++)
        LLVMAddIncoming(sum[i], (value[]){first[i], next[i]}, from, 2);

    go_on_at(&e, end);
    if (c)
        store_tile(&e, next, height, vectors, *c, tile, resume);
    for (int i = 0; !c && i < n; i++) {
        value to = advance(&e, tile, constant(&e, i / vectors * row_bytes + i % vectors * vector_bytes));
        LLVMSetAlignment(LLVMBuildStore(builder, next[i], to), (unsigned)(lanes[i % vectors] * unit_bytes));
    }
    end_function(&e);
}

void cpu_gemm_emit_micro(LLVMModuleRef module, cpu_isa isa, ir_dtype dtype)
{
    cpu_gemm_tile_shape tile = cpu_gemm_tile_of(isa, dtype);
    if (cpu_gemm_has_tiles(isa, dtype)) {
        cpu_gemm_emit_amx(module, isa);
        return;
    }
    for (int h = 0; h < tile.n_heights; h++)
        for (int vectors = 1; vectors <= MAX_VECTORS; vectors++)
            emit_tile(module, isa, dtype, tile.heights[h], vectors * tile.lanes, false, NULL);
    for (int vectors = 1; vectors <= MAX_VECTORS; vectors++)
        emit_tile(module, isa, dtype, tile.heights[0], vectors * tile.lanes, true, NULL);
}

void cpu_gemm_emit_direct(LLVMModuleRef module, cpu_isa isa, ir_dtype dtype, ir_dtype c)
{
    cpu_gemm_tile_shape tile = cpu_gemm_tile_of(isa, dtype);
    for (int dense = 0; dense < 2; dense++)
        emit_tile(module, isa, dtype, tile.heights[0], tile.columns, dense, &c);
}

void cpu_gemm_emit_narrow(LLVMModuleRef module, cpu_isa isa, ir_dtype dtype, int columns)
{
    cpu_gemm_tile_shape tile = cpu_gemm_tile_of(isa, dtype);
    for (int h = 0; h < tile.n_heights; h += CPU_GEMM_NARROW_STEP)
        emit_tile(module, isa, dtype, tile.heights[h], columns, false, NULL);
    emit_tile(module, isa, dtype, tile.heights[0], columns, true, NULL);
}
