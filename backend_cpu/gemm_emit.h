/* What the three generators of gemm.h's pieces share. */
#ifndef CPU_GEMM_EMIT_H
#define CPU_GEMM_EMIT_H

#include <llvm-c/Core.h>

#include "backend_cpu/gemm.h"

typedef LLVMValueRef value;
typedef LLVMBasicBlockRef block;

/* One function under construction. */
typedef struct {
    cpu_vector_env v;
    LLVMTypeRef i8, i16, i32, i64, pointer;
    LLVMTypeRef sum;                             /* of a lane of the accumulators: f32 or f64 */
    value function;
} emitter;

static inline value constant(const emitter *e, int64_t x) { return LLVMConstInt(e->i64, (uint64_t)x, 1); }
static inline value iadd(const emitter *e, value a, value b) { return LLVMBuildAdd(e->v.builder, a, b, ""); }
static inline value isub(const emitter *e, value a, value b) { return LLVMBuildSub(e->v.builder, a, b, ""); }
static inline value imul(const emitter *e, value a, value b) { return LLVMBuildMul(e->v.builder, a, b, ""); }
static inline value iadd_constant(const emitter *e, value a, int64_t b) { return iadd(e, a, constant(e, b)); }
static inline value imul_constant(const emitter *e, value a, int64_t b) { return imul(e, a, constant(e, b)); }
static inline value is_less(const emitter *e, value a, value b) { return LLVMBuildICmp(e->v.builder, LLVMIntSLT, a, b, ""); }
static inline value lesser(const emitter *e, value a, value b) { return LLVMBuildSelect(e->v.builder, is_less(e, a, b), a, b, ""); }

/* pointer + bytes */
static inline value advance(const emitter *e, value pointer, value bytes)
{
    return LLVMBuildGEP2(e->v.builder, e->i8, pointer, &bytes, 1, "");
}

static inline value load_field(const emitter *e, value record, size_t offset, LLVMTypeRef type)
{
    return LLVMBuildLoad2(e->v.builder, type, advance(e, record, constant(e, (int64_t)offset)), "");
}
#define FIELD(e, record, type, member) load_field((e), (record), offsetof(type, member), (e)->i64)
#define POINTER_FIELD(e, record, type, member) load_field((e), (record), offsetof(type, member), (e)->pointer)

/* Into the second-level cache. */
static inline void prefetch(const emitter *e, value pointer)
{
    static const char name[] = "llvm.prefetch";
    LLVMTypeRef type = e->pointer;
    value function = LLVMGetIntrinsicDeclaration(e->v.module, LLVMLookupIntrinsicID(name, sizeof name - 1), &type, 1);
    value args[] = {pointer, LLVMConstInt(e->i32, 0, 0), LLVMConstInt(e->i32, 2, 0), LLVMConstInt(e->i32, 1, 0)};
    LLVMBuildCall2(e->v.builder, LLVMGlobalGetValueType(function), function, args, 4, "");
}

static inline block new_block(const emitter *e) { return LLVMAppendBasicBlockInContext(e->v.context, e->function, ""); }
static inline void go_on_at(const emitter *e, block b) { LLVMPositionBuilderAtEnd(e->v.builder, b); }

static inline emitter begin_function(LLVMModuleRef module, cpu_isa isa, ir_dtype dtype, const char *name,
                                     const char *parameters)     /* 'p' a pointer, 'i' an i64 */
{
    LLVMContextRef context = LLVMGetModuleContext(module);
    emitter e = {.v = {context, module, LLVMCreateBuilderInContext(context), isa, cpu_gemm_tile_of(isa, dtype).lanes}};
    e.i8 = LLVMInt8TypeInContext(context), e.i16 = LLVMInt16TypeInContext(context);
    e.i32 = LLVMInt32TypeInContext(context), e.i64 = LLVMInt64TypeInContext(context);
    e.pointer = LLVMPointerTypeInContext(context, 0);
    e.sum = dtype == IR_F64 ? LLVMDoubleTypeInContext(context) : LLVMFloatTypeInContext(context);
    LLVMTypeRef types[16];
    unsigned n = 0;
    for (; parameters[n]; n++)
        types[n] = parameters[n] == 'p' ? e.pointer : e.i64;
    e.function = LLVMAddFunction(module, name, LLVMFunctionType(LLVMVoidTypeInContext(context), types, n, 0));
    go_on_at(&e, new_block(&e));
    return e;
}

static inline void end_function(emitter *e)
{
    LLVMBuildRetVoid(e->v.builder);
    LLVMDisposeBuilder(e->v.builder);
}

/* for (i = from; i < to; i += step) { ... }, begun and ended by these two; i is the loop's value. */
typedef struct { value i, to; int64_t step; block body, after; } counted_loop;

static inline counted_loop begin_loop(const emitter *e, value from, value to, int64_t step)
{
    counted_loop loop = {.to = to, .step = step, .body = new_block(e), .after = new_block(e)};
    block before = LLVMGetInsertBlock(e->v.builder);
    LLVMBuildCondBr(e->v.builder, is_less(e, from, to), loop.body, loop.after);
    go_on_at(e, loop.body);
    loop.i = LLVMBuildPhi(e->v.builder, e->i64, "");
    LLVMAddIncoming(loop.i, &from, &before, 1);
    return loop;
}

static inline void end_loop(const emitter *e, counted_loop *loop)
{
    value next = iadd_constant(e, loop->i, loop->step);
    block last = LLVMGetInsertBlock(e->v.builder);
    LLVMAddIncoming(loop->i, &next, &last, 1);
    LLVMBuildCondBr(e->v.builder, is_less(e, next, loop->to), loop->body, loop->after);
    go_on_at(e, loop->after);
}

enum { MAX_LANES = 16 };

/* Lanes of a followed by b, by number. */
static inline value shuffle(const emitter *e, value a, value b, const int *from)
{
    value index[MAX_LANES];
    for (int i = 0; i < e->v.lanes; i++)
        index[i] = LLVMConstInt(e->i32, (unsigned)from[i], 0);
    return LLVMBuildShuffleVector(e->v.builder, a, b, LLVMConstVector(index, (unsigned)e->v.lanes), "");
}

/* x with so many low bits in reverse. */
static inline int reversed_bits(int x, int limit)
{
    int y = 0;
    for (int bit = 1; bit < limit; bit *= 2)
        y = 2 * y + (x & bit ? 1 : 0);
    return y;
}

/* rows[i] lane j <-> rows[j] lane i, elements being of 4 or 8 bytes. log2(lanes) steps of one shuffle a row, each of which x86 has an
 * instruction for that needs no vector of indices. First within blocks of 16 bytes: runs of s elements of two rows s apart come to lie in
 * turn, lower halves in one vector and upper ones in the other, which leaves the rows of a block with the bits of their numbers in
 * reverse. Then by whole blocks: even ones and odd ones. */
static inline void emit_transpose(const emitter *e, value *rows)
{
    int lanes = e->v.lanes, block = MIN(LLVMTypeOf(rows[0]) == cpu_vtype(&e->v, LLVMDoubleTypeInContext(e->v.context)) ? 2 : 4, lanes);
    for (int s = 1; s < lanes; s *= 2)
        for (int i = 0; i < lanes; i++) {
            if (i & s)
                continue;
            int low[MAX_LANES], high[MAX_LANES];
            for (int j = 0; j < lanes; j++) {
                int run = j % block / s, in_block = j / block * block + run / 2 * s + j % s + (run % 2 ? lanes : 0);
                int even = j / block * 2 * block + j % block;        /* of both vectors' blocks, one after the other */
                low[j] = s < block ? in_block : even;
                high[j] = s < block ? in_block + block / 2 : even + block;
            }
            value a = rows[i], b = rows[i + s];
            rows[i] = shuffle(e, a, b, low);
            rows[i + s] = shuffle(e, a, b, high);
        }
    value from[MAX_LANES];
    for (int i = 0; i < lanes; i++)
        from[i] = rows[i];
    for (int i = 0; i < lanes; i++)
        rows[i / block * block + reversed_bits(i % block, block)] = from[i];
}

#endif
