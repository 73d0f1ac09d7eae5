/* The machine that executes PTX (tests/ptx), on texts written for it: what each instruction makes of chosen operands,
 * a warp whose lanes part and meet, what a warp does together, and everything that it is there to find, provoked once. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/ptx/ptx.h"

enum { ROOM = 4096, MOST_TEXT = 1 << 14 };
static _Alignas(512) unsigned char room[4 * ROOM], *const from = room, *const to = room + 2 * ROOM;      /* nothing is between them and behind */

static const char *memory(const void *at, size_t bytes, size_t *block_bytes)
{
    unsigned char *const blocks[] = { from, to };
    *block_bytes = ROOM;
    for (int i = 0; i < 2; i++)
        if ((const unsigned char *)at >= blocks[i] && (const unsigned char *)at + bytes <= blocks[i] + ROOM)
            return (const char *)blocks[i];
    return NULL;
}

/* Of a kernel whose body is given: the thread's number is %r1, the block's %r2, and %rd1 and %rd2 are where `to` and `from` lie. */
typedef struct { unsigned blocks, threads, shared_bytes; const char *functions; ptx_counts *counts; } launch;
static char *run_with(const launch *l, const char *body)
{
    static char text[MOST_TEXT];
    snprintf(text, sizeof text,
             ".version 8.0\n.target sm_80\n.address_size 64\n.extern .shared .align 16 .b8 memory[];\n%s\n"
             ".visible .entry k(.param .u64 p0, .param .u64 p1)\n.maxntid 256, 1, 1\n{\n"
             ".reg .pred %%p<20>;\n.reg .b16 %%rs<20>;\n.reg .b32 %%r<40>;\n.reg .f32 %%f<20>;\n.reg .b64 %%rd<20>;\n.reg .f64 %%fd<20>;\n"
             ".shared .align 16 .b8 fixed[1024];\n"
             "ld.param.u64 %%rd1, [p0];\nld.param.u64 %%rd2, [p1];\nmov.u32 %%r1, %%tid.x;\nmov.u32 %%r2, %%ctaid.x;\n%s\nret;\n}\n",
             l->functions ? l->functions : "", body);
    char *why = NULL;
    ptx_module *module = ptx_read(text, &why);
    if (!module)
        return why;
    const void *params[] = { to, from };
    const ptx_options options = { .orders_blocks = true, .memory = memory, .counts = l->counts };
    why = ptx_launch(ptx_find(module, "k"), (unsigned[]){ l->blocks, 1, 1 }, l->threads, l->shared_bytes, params, sizeof params, &options);
    ptx_free(module);
    ptx_forget(to, ROOM);
    ptx_forget(from, ROOM);
    return why;
}

static void run(unsigned threads, const char *body)
{
    char *why = run_with(&(launch){ .blocks = 1, .threads = threads, .shared_bytes = 1024 }, body);
    if (why)
        fail_msg("%s", why);
}

/* -- instructions ---------------------------------------------------------------------------------------------------------- */

/* d, a, b and c stand for registers of the types; their bits are given. */
typedef struct { const char *text, *types; uint64_t a, b, c, d; } instruction;

static const char *register_of(const char *type)
{
    return !strcmp(type, "f32") ? "%f" : !strcmp(type, "f64") ? "%fd" : strstr(type, "16") ? "%rs" : strstr(type, "64") ? "%rd" : "%r";
}

/* "d, a, b" with a register for each letter that stands alone. */
static void write_operands(char *out, const char *text, char names[4][16])
{
    char *const begin = out;
    for (const char *s = text; *s; s++) {
        bool alone = *s >= 'a' && *s <= 'd' && (s == text || strchr(" ,{", s[-1])) && (s[1] == '\0' || strchr(",;}", s[1]));
        if (alone)
            out += sprintf(out, "%s", names[*s - 'a']);
        else
            *out++ = *s;
    }
    *out = '\0';
    assert_true(out - begin < MOST_TEXT / 2);
}

static void check_instruction(const instruction *i)
{
    char types[4][8] = { "b32", "b32", "b32", "b32" }, names[4][16], body[MOST_TEXT / 2], operands[MOST_TEXT / 4], *end = body;
    sscanf(i->types, "%7s %7s %7s %7s", types[3], types[0], types[1], types[2]);
    const uint64_t values[] = { i->a, i->b, i->c };
    memcpy(from, values, sizeof values);
    memset(to, 0, 8);
    for (int k = 0; k < 4; k++) {
        snprintf(names[k], sizeof names[k], "%s%d", register_of(types[k]), 10 + k);
        if (k < 3)
            end += sprintf(end, "ld.global.%s %s, [%%rd2+%d];\n", types[k], names[k], 8 * k);
    }
    write_operands(operands, i->text, names);
    end += sprintf(end, "%s;\nst.global.%s [%%rd1], %s;", operands, types[3], names[3]);
    run(1, body);
    uint64_t got = 0;
    memcpy(&got, to, 8);
    if (got != i->d)
        fail_msg("%s of %#llx, %#llx, %#llx: expected %#llx, got %#llx", i->text, (unsigned long long)i->a, (unsigned long long)i->b,
                 (unsigned long long)i->c, (unsigned long long)i->d, (unsigned long long)got);
}

#define ONE 0x3f800000
#define NAN32 0x7fc00000
#define TINY 0x00000001        /* a subnormal */
static const instruction instructions[] = {
    { "add.s32 d, a, b", "b32 b32 b32", 0xffffffff, 2, 0, 1 },
    { "add.s64 d, a, b", "b64 b64 b64", 0xffffffff, 2, 0, 0x100000001 },
    { "sub.s16 d, a, b", "b16 b16 b16", 1, 3, 0, 0xfffe },
    { "mul.lo.s32 d, a, b", "b32 b32 b32", 0x10001, 0x10001, 0, 0x20001 },
    { "mul.hi.u32 d, a, b", "b32 b32 b32", 0xffffffff, 0xffffffff, 0, 0xfffffffe },
    { "mul.hi.s32 d, a, b", "b32 b32 b32", 0xffffffff, 5, 0, 0xffffffff },
    { "mul.hi.u64 d, a, b", "b64 b64 b64", 0xffffffffffffffff, 3, 0, 2 },
    { "mul.wide.s32 d, a, b", "b64 b32 b32", 0xffffffff, 5, 0, 0xfffffffffffffffb },
    { "mul.wide.u32 d, a, b", "b64 b32 b32", 0xffffffff, 5, 0, 0x4fffffffb },
    { "mul.wide.u16 d, a, b", "b32 b16 b16", 0xffff, 0xffff, 0, 0xfffe0001 },
    { "mad.lo.s32 d, a, b, c", "b32 b32 b32 b32", 7, 6, 0xffffffff, 41 },
    { "mad.wide.u32 d, a, b, c", "b64 b32 b32 b64", 0x80000000, 2, 1, 0x100000001 },
    { "add.cc.u32 d, a, b;\naddc.u32 d, c, 0", "b32 b32 b32 b32", 0xffffffff, 1, 5, 6 },
    { "sub.cc.u32 d, a, b;\nsubc.u32 d, c, 0", "b32 b32 b32 b32", 0, 1, 5, 4 },
    { "mad.lo.cc.u32 d, a, b, c;\nmadc.hi.u32 d, a, b, 0", "b32 b32 b32 b32", 0xffffffff, 1, 1, 1 },
    { "div.s32 d, a, b", "b32 b32 b32", 0xfffffff9, 2, 0, 0xfffffffd },
    { "div.u32 d, a, b", "b32 b32 b32", 0xfffffff9, 2, 0, 0x7ffffffc },
    { "rem.s32 d, a, b", "b32 b32 b32", 0xfffffff9, 2, 0, 0xffffffff },
    { "rem.s32 d, a, b", "b32 b32 b32", 0x80000000, 0xffffffff, 0, 0 },
    { "min.s32 d, a, b", "b32 b32 b32", 0xffffffff, 2, 0, 0xffffffff },
    { "max.u32 d, a, b", "b32 b32 b32", 0xffffffff, 2, 0, 0xffffffff },
    { "abs.s32 d, a", "b32 b32", 0xfffffff9, 0, 0, 7 },
    { "neg.s32 d, a", "b32 b32", 7, 0, 0, 0xfffffff9 },
    { "shl.b32 d, a, b", "b32 b32 b32", 3, 31, 0, 0x80000000 },
    { "shl.b32 d, a, b", "b32 b32 b32", 3, 32, 0, 0 },
    { "shr.u32 d, a, b", "b32 b32 b32", 0x80000000, 31, 0, 1 },
    { "shr.u32 d, a, b", "b32 b32 b32", 0x80000000, 40, 0, 0 },
    { "shr.s32 d, a, b", "b32 b32 b32", 0x80000000, 40, 0, 0xffffffff },
    { "shr.s64 d, a, b", "b64 b64 b32", 0x8000000000000000, 4, 0, 0xf800000000000000 },
    { "shr.u16 d, a, b", "b16 b16 b32", 0xff00, 4, 0, 0x0ff0 },
    { "shf.l.wrap.b32 d, a, b, c", "b32 b32 b32 b32", 0x80000001, 0x1, 33, 0x3 },
    { "shf.r.clamp.b32 d, a, b, c", "b32 b32 b32 b32", 0x80000001, 0x1, 40, 0x1 },
    { "bfi.b32 d, a, b, 8, 4", "b32 b32 b32", 0xab, 0xffffffff, 0, 0xfffffbff },
    { "prmt.b32 d, a, b, 0x7610", "b32 b32 b32", 0x33221100, 0x77665544, 0, 0x77661100 },
    { "prmt.b32 d, a, b, 0xb", "b32 b32 b32", 0x80221100, 0x77665544, 0, 0x000000ff },
    { "clz.b64 d, a", "b32 b64", 1, 0, 0, 63 },
    { "clz.b32 d, a", "b32 b32", 0, 0, 0, 32 },
    { "popc.b32 d, a", "b32 b32", 0xf0f, 0, 0, 8 },
    { "not.b32 d, a", "b32 b32", 0xf0f, 0, 0, 0xfffff0f0 },
    { "mov.b64 d, {a, b}", "b64 b32 b32", 1, 2, 0, 0x200000001 },
    { "mov.b64 {%r30, d}, a", "b32 b64", 0x200000001, 0, 0, 2 },
    { "mov.b32 d, {a, b}", "b32 b16 b16", 1, 2, 0, 0x20001 },
    { "cvt.u16.u32 d, a", "b16 b32", 0x12345, 0, 0, 0x2345 },
    { "cvt.s64.s32 d, a", "b64 b32", 0xfffffffe, 0, 0, 0xfffffffffffffffe },
    { "cvt.u64.u32 d, a", "b64 b32", 0xfffffffe, 0, 0, 0xfffffffe },
    { "cvt.u32.u64 d, a", "b32 b64", 0x1fffffffe, 0, 0, 0xfffffffe },
    { "cvt.rn.f32.s32 d, a", "f32 b32", 0xffffffff, 0, 0, 0xbf800000 },
    { "cvt.rn.f32.s32 d, a", "f32 b32", 0x1000001, 0, 0, 0x4b800000 },
    { "cvt.rzi.s32.f32 d, a", "b32 f32", 0xbfc00000, 0, 0, 0xffffffff },
    { "cvt.rni.s32.f32 d, a", "b32 f32", 0x40200000, 0, 0, 2 },
    { "cvt.rmi.f32.f32 d, a", "f32 f32", 0xbfc00000, 0, 0, 0xc0000000 },
    { "cvt.rzi.s32.f32 d, a", "b32 f32", 0x4f800000, 0, 0, 0x7fffffff },
    { "cvt.rzi.s32.f32 d, a", "b32 f32", NAN32, 0, 0, 0 },
    { "cvt.f64.f32 d, a", "f64 f32", 0x3fc00000, 0, 0, 0x3ff8000000000000 },
    { "cvt.rn.f32.f64 d, a", "f32 f64", 0x3ff0000010000000, 0, 0, ONE },
    { "cvt.sat.f32.f32 d, a", "f32 f32", 0x40200000, 0, 0, ONE },
    { "cvt.sat.f32.f32 d, a", "f32 f32", NAN32, 0, 0, 0 },
    { "cvt.rn.bf16.f32 d, a", "b16 f32", 0x3f808000, 0, 0, 0x3f80 },
    { "cvt.rn.bf16.f32 d, a", "b16 f32", 0x3f818000, 0, 0, 0x3f82 },
    { "cvt.rn.bf16.f32 d, a", "b16 f32", 0xffc00001, 0, 0, 0x7fff },
    { "cvt.rn.bf16x2.f32 d, a, b", "b32 f32 f32", ONE, 0x40000000, 0, 0x3f804000 },
    { "add.f32 d, a, b", "f32 f32 f32", ONE, 0x33800000, 0, ONE },
    { "fma.rn.f32 d, a, b, c", "f32 f32 f32 f32", 0x3f800001, 0x3f800001, 0xbf800002, 0x28800000 },
    { "fma.rm.f32 d, a, b, c", "f32 f32 f32 f32", ONE, ONE, 0x33000000, ONE },
    { "fma.rp.f32 d, a, b, c", "f32 f32 f32 f32", ONE, ONE, 0x33000000, 0x3f800001 },
    { "mul.ftz.f32 d, a, b", "f32 f32 f32", TINY, ONE, 0, 0 },
    { "mul.f32 d, a, b", "f32 f32 f32", TINY, ONE, 0, TINY },
    { "min.f32 d, a, b", "f32 f32 f32", NAN32, ONE, 0, ONE },
    { "max.NaN.f32 d, a, b", "f32 f32 f32", 0xffc00001, ONE, 0, NAN32 },
    { "max.f32 d, a, b", "f32 f32 f32", 0x80000000, 0, 0, 0 },
    { "div.rn.f32 d, a, b", "f32 f32 f32", ONE, 0x40400000, 0, 0x3eaaaaab },
    { "sqrt.rn.f32 d, a", "f32 f32", 0x40000000, 0, 0, 0x3fb504f3 },
    { "rcp.rn.f64 d, a", "f64 f64", 0x4010000000000000, 0, 0, 0x3fd0000000000000 },
    { "rcp.approx.ftz.f64 d, a", "f64 f64", 0x4008000000000000, 0, 0, 0x3fd5555500000000 },
    { "ex2.approx.f32 d, a", "f32 f32", 0x40400000, 0, 0, 0x41000000 },
    { "copysign.f32 d, a, b", "f32 f32 f32", 0x80000000, ONE, 0, 0xbf800000 },
    { "neg.f32 d, a", "f32 f32", ONE, 0, 0, 0xbf800000 },
    { "setp.lt.s32 %p1, a, b;\nselp.b32 d, 1, 2, %p1", "b32 b32 b32", 0xffffffff, 0, 0, 1 },
    { "setp.lt.u32 %p1, a, b;\nselp.b32 d, 1, 2, %p1", "b32 b32 b32", 0xffffffff, 0, 0, 2 },
    { "setp.lo.u32 %p1, a, b;\nselp.b32 d, 1, 2, %p1", "b32 b32 b32", 0xffffffff, 0, 0, 2 },
    { "setp.gt.f32 %p1, a, b;\nselp.b32 d, 1, 2, %p1", "b32 f32 f32", NAN32, 0, 0, 2 },
    { "setp.leu.f32 %p1, a, b;\nselp.b32 d, 1, 2, %p1", "b32 f32 f32", NAN32, 0, 0, 1 },
    { "setp.ne.f32 %p1, a, b;\nselp.b32 d, 1, 2, %p1", "b32 f32 f32", NAN32, 0, 0, 2 },
    { "setp.neu.f32 %p1, a, b;\nselp.b32 d, 1, 2, %p1", "b32 f32 f32", NAN32, 0, 0, 1 },
    { "setp.eq.s32 %p1, a, 1;\nsetp.eq.s32 %p2, b, 1;\nand.pred %p3, %p1, %p2;\nnot.pred %p4, %p3;\n"
      "selp.b32 d, 1, 2, %p4", "b32 b32 b32", 1, 1, 0, 2 },
    { "setp.eq.s32 %p1, a, 1;\nmov.u32 d, 9;\n@!%p1 mov.u32 d, 8;\n@%p1 mov.u32 d, 7", "b32 b32", 1, 0, 0, 7 },
};

static void test_instructions(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof instructions / sizeof instructions[0]; i++)
        check_instruction(&instructions[i]);
}

/* -- a warp ----------------------------------------------------------------------------------------------------------------- */

static uint32_t word(const unsigned char *at, int i)
{
    uint32_t value;
    memcpy(&value, at + 4 * i, 4);
    return value;
}

/* Each lane goes round as often as its number says; those that leave early are met again behind the loop. */
static void test_lanes_part_and_meet(void **state)
{
    (void)state;
    run(64, "mov.u32 %r3, 0;\nmov.u32 %r4, 0;\n"
            "$loop:\nsetp.ge.u32 %p1, %r3, %r1;\n@%p1 bra $out;\nand.b32 %r5, %r3, 1;\nsetp.eq.s32 %p2, %r5, 0;\n@%p2 bra $even;\n"
            "add.s32 %r4, %r4, 100;\nbra.uni $next;\n"
            "$even:\nadd.s32 %r4, %r4, 1;\n$next:\nadd.s32 %r3, %r3, 1;\nbra.uni $loop;\n"
            "$out:\nshfl.sync.bfly.b32 %r6|%p3, %r4, 1, 31, -1;\nmul.wide.u32 %rd3, %r1, 4;\nadd.s64 %rd4, %rd1, %rd3;\nst.global.u32 [%rd4], %r6;");
    for (int l = 0; l < 64; l++) {
        int other = l ^ 1;
        assert_int_equal(word(to, l), (other + 1) / 2 + other / 2 * 100);
    }
}

static void test_shuffles(void **state)
{
    static const struct { const char *how; int by; const char *clamp; int expected_of_9, expected_of_31; } cases[] = {
        { "bfly", 3, "31", 10, 28 }, { "down", 2, "31", 11, 31 }, { "up", 4, "0", 5, 27 }, { "idx", 7, "31", 7, 7 },
        { "down", 2, "0x1807", 11, 31 }, { "idx", 1, "0x181f", 9, 25 } };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char body[512];
        snprintf(body, sizeof body, "shfl.sync.%s.b32 %%r3, %%r1, %d, %s, -1;\nmul.wide.u32 %%rd3, %%r1, 4;\nadd.s64 %%rd4, %%rd1, %%rd3;\n"
                                    "st.global.u32 [%%rd4], %%r3;", cases[i].how, cases[i].by,
                 cases[i].clamp);
        run(32, body);
        assert_int_equal(word(to, 9), cases[i].expected_of_9);
        assert_int_equal(word(to, 31), cases[i].expected_of_31);
    }
}

static uint16_t bf16(int small) { float x = (float)small; uint32_t bits; memcpy(&bits, &x, 4); return (uint16_t)(bits >> 16); }

/* A 16 x 16 and B 16 x 8, by columns, of small numbers, through shared memory: what ldmatrix and mma make of them is the
 * product, wherever the standard has the elements lie in between. */
static void test_matrices(void **state)
{
    uint16_t a[16][16], b[8][16];
    (void)state;
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < 16; k++)
            a[i][k] = bf16((7 * i + 3 * k) % 11 - 5);
    for (int j = 0; j < 8; j++)
        for (int k = 0; k < 16; k++)
            b[j][k] = bf16((5 * j + 2 * k) % 7 - 3);
    memcpy(from, a, sizeof a);
    memcpy(from + sizeof a, b, sizeof b);
    /* 48 chunks of 16 bytes by cp.async; lane l reads row l % 16 of A from column 8 (l / 16), and of B row l % 8 from column 8 (l / 8 % 2) */
    run(32, "mul.wide.u32 %rd3, %r1, 16;\nadd.s64 %rd4, %rd2, %rd3;\nmov.u64 %rd5, memory;\nadd.s64 %rd6, %rd5, %rd3;\ncvt.u32.u64 %r3, %rd6;\n"
            "cp.async.cg.shared.global [%r3], [%rd4], 16;\n"
            "setp.lt.u32 %p1, %r1, 16;\n@!%p1 bra $copied;\nadd.s64 %rd4, %rd4, 512;\nadd.s32 %r3, %r3, 512;\nmov.u32 %r4, 16;\n"
            "cp.async.cg.shared.global [%r3], [%rd4], 16, %r4;\n"
            "$copied:\ncp.async.wait_all;\nbar.sync 0;\n"
            "and.b32 %r5, %r1, 15;\nshl.b32 %r5, %r5, 5;\nshr.u32 %r6, %r1, 4;\nshl.b32 %r6, %r6, 4;\nadd.s32 %r5, %r5, %r6;\ncvt.u32.u64 %r7, %rd5;\n"
            "add.s32 %r5, %r5, %r7;\n"
            "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r10, %r11, %r12, %r13}, [%r5];\n"
            "and.b32 %r5, %r1, 7;\nshl.b32 %r5, %r5, 5;\nshr.u32 %r6, %r1, 3;\nand.b32 %r6, %r6, 1;\nshl.b32 %r6, %r6, 4;\nadd.s32 %r5, %r5, %r6;\n"
            "add.s32 %r5, %r5, %r7;\n"
            "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r14, %r15, %r16, %r17}, [%r5+512];\n"
            "mov.f32 %f1, 0f00000000;\n"
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%f2, %f3, %f4, %f5}, {%r10, %r11, %r12, %r13}, {%r14, %r15}, {%f1, %f1, %f1, %f1};\n"
            ""
            "shr.u32 %r20, %r1, 2;\nand.b32 %r21, %r1, 3;\nshl.b32 %r22, %r20, 5;\nshl.b32 %r23, %r21, 3;\nadd.s32 %r24, %r22, %r23;\n"
            "cvt.u64.u32 %rd7, %r24;\nadd.s64 %rd8, %rd1, %rd7;\n"
            "st.global.v2.f32 [%rd8], {%f2, %f3};\nst.global.v2.f32 [%rd8+256], {%f4, %f5};");
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 8; j++) {
            float got, sum = 0;
            for (int k = 0; k < 16; k++)
                sum += (float)((7 * i + 3 * k) % 11 - 5) * (float)((5 * j + 2 * k) % 7 - 3);
            memcpy(&got, to + 4 * (8 * i + j), 4);
            if (got != sum)
                fail_msg("element %d, %d: expected %g, got %g", i, j, sum, got);
        }
}

/* A function with two results side by side, called by some lanes alone. */
static void test_calls(void **state)
{
    (void)state;
    const launch l = { 1, 32, 0,
                       ".func (.param .align 8 .b8 result[16]) twice(.param .b32 x)\n{\n.reg .b32 %r<4>;\n.reg .b64 %rd<4>;\n"
                       ".local .align 8 .b8 room[8];\n.reg .b64 %SPL;\nmov.u64 %SPL, room;\n"
                       "ld.param.u32 %r1, [x];\nst.local.u32 [%SPL+4], %r1;\nld.local.u32 %r2, [%SPL+4];\nadd.s32 %r3, %r1, %r2;\n"
                       "st.param.b32 [result+0], %r3;\ncvt.u64.u32 %rd1, %r1;\n"
                       "st.param.b64 [result+8], %rd1;\nret;\n}\n", NULL };
    char *why = run_with(&l, "mov.u32 %r5, 1000;\nmov.u64 %rd5, 1;\nsetp.lt.u32 %p1, %r1, 10;\n@%p1 bra $out;\n{\n.param .b32 given;\n"
                             "st.param.b32 [given+0], %r1;\n.param .align 8 .b8 got[16];\n"
                             "call.uni (got), twice, (given);\nld.param.b32 %r5, [got+0];\nld.param.b64 %rd5, [got+8];\n}\n$out:\n"
                             "cvt.u32.u64 %r6, %rd5;\nadd.s32 %r7, %r5, %r6;\n"
                             "mul.wide.u32 %rd3, %r1, 4;\nadd.s64 %rd4, %rd1, %rd3;\nst.global.u32 [%rd4], %r7;");
    if (why)
        fail_msg("%s", why);
    for (int t = 0; t < 32; t++)
        assert_int_equal(word(to, t), t < 10 ? 1001 : 3 * t);
}

/* -- what it finds -------------------------------------------------------------------------------------------------------------- */

#define AT_4 "mul.wide.u32 %rd3, %r1, 4;\nadd.s64 %rd4, %rd1, %rd3;\n"         /* the thread's word of `to` */
#define SHARED_AT_4 "mov.u64 %rd5, memory;\nmul.wide.u32 %rd3, %r1, 4;\nadd.s64 %rd6, %rd5, %rd3;\n"
static const struct { const char *body, *why; unsigned blocks, threads; } faults[] = {
    { "st.global.u32 [%rd1+4096], %r1;", "4 bytes at 0x", 1, 1 },
    { "st.global.u32 [%rd1+2], %r1;", "not aligned", 1, 1 },
    { "ld.global.v4.u32 {%r3, %r4, %r5, %r6}, [%rd2+8];", "16 bytes at 0x", 1, 1 },
    { "add.s32 %r3, %r4, 1;\nst.global.u32 [%rd1], %r3;", "operand 0 was not written", 1, 1 },
    { "add.s32 %r3, %r4, 1;\nsetp.eq.s32 %p1, %r3, 1;\n@%p1 bra $end;\n$end:", "guard was not written", 1, 1 },
    { "st.global.u32 [%rd9], %r1;", "address was not written", 1, 1 },
    { "div.u32 %r3, 1, %r1;", "a division by 0", 1, 1 },
    { "st.global.u32 [%rd1], %r1;", "two threads write one byte", 1, 2 },
    { "st.global.u32 [%rd1], %r1;", "two threads write one byte", 2, 1 },
    { AT_4 "ld.global.u32 %r3, [%rd1];\nst.global.u32 [%rd4], %r1;", "one thread writes what another reads", 1, 33 },
    { AT_4 "st.global.u32 [%rd4], %r1;\nld.global.u32 %r3, [%rd1];", "one thread reads what another writes", 1, 2 },
    { SHARED_AT_4 "ld.shared.u32 %r3, [%rd6];", "a byte that nobody wrote", 1, 1 },
    { SHARED_AT_4 "st.shared.u32 [%rd6+1024], %r1;", "of shared memory, of which the block has", 1, 1 },
    { SHARED_AT_4 "st.shared.u32 [%rd6], %r1;\nld.shared.u32 %r3, [%rd5];", "one thread reads what another writes", 1, 32 },
    { SHARED_AT_4 "st.shared.u32 [%rd6], %r1;\nbar.warp.sync -1;\nld.shared.u32 %r3, [%rd5];", "one thread reads what another writes", 1, 33 },
    { SHARED_AT_4 "st.shared.u32 [%rd6], %r1;\nbar.sync 0;\nld.shared.u32 %r3, [%rd5];\n"
                  "st.shared.u32 [%rd6], %r1;", "one thread writes what another reads", 1, 64 },
    { "cvt.u32.u64 %r3, %rd1;\nmov.u64 %rd5, memory;\ncvt.u32.u64 %r4, %rd5;\ncp.async.cg.shared.global [%r4], [%rd2], 16;\n"
      "ld.shared.u32 %r5, [%rd5];", "still bringing", 1, 1 },
    { "mov.u64 %rd5, memory;\ncvt.u32.u64 %r4, %rd5;\nsetp.eq.s32 %p1, %r1, 0;\n@%p1 cp.async.cg.shared.global [%r4], [%rd2], 16;\n"
      "cp.async.wait_all;\nld.shared.u32 %r5, [%rd5];",
      "one thread reads what another writes", 1, 33 },
    { "setp.lt.u32 %p1, %r1, 7;\n@%p1 bra $end;\nbar.sync 0;\n$end:", "this lane has ended", 1, 32 },
    { "setp.lt.u32 %p1, %r1, 7;\n@%p1 bra $a;\nbar.sync 0;\nbra.uni $end;\n$a:\nbar.sync 0;\n$end:", "to which this one does not come", 1, 32 },
    { "setp.lt.u32 %p1, %r1, 7;\n@%p1 shfl.sync.bfly.b32 %r3, %r1, 1, 31, -1;", "of which a guard keeps this lane", 1, 32 },
    { "shfl.sync.idx.b32 %r3, %r1, 20, 31, -1;", "shfl from lane 20, which is not there", 1, 8 },
    { "trap;", "trap", 1, 1 },
    { "mov.u32 %r3, %r1;", "300 threads, compiled for 256", 1, 300 },
    { "frob.u32 %r3, %r1;", "PTX, line 20: the instruction frob", 1, 1 },
    { "add.frob.u32 %r3, %r1, %r1;", "PTX, line 20: the modifier .frob of add", 1, 1 },
    { "add.u32 %r3, %r1, %q1;", "PTX, line 20: the name %q1", 1, 1 },
    { "bra $nowhere;", "no label $nowhere", 1, 1 },
};

static void test_faults(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof faults / sizeof faults[0]; i++) {
        char *why = run_with(&(launch){ .blocks = faults[i].blocks, .threads = faults[i].threads, .shared_bytes = 1024 }, faults[i].body);
        if (!why || !strstr(why, faults[i].why))
            fail_msg("%s\nexpected ...%s, got %s", faults[i].body, faults[i].why, why ? why : "nothing");
        free(why);
    }
}

/* What is right is let through: the same as above with what it lacks. */
static void test_order(void **state)
{
    (void)state;
    run(33, AT_4 "ld.global.u32 %r3, [%rd1];\nbar.sync 0;\nst.global.u32 [%rd4], %r1;");
    run(32, SHARED_AT_4 "st.shared.u32 [%rd6], %r1;\nbar.warp.sync -1;\nld.shared.u32 %r3, [%rd5];\nbar.warp.sync -1;\nst.shared.u32 [%rd6], %r3;");
    run(64, SHARED_AT_4 "st.shared.u32 [%rd6], %r1;\nbar.sync 0;\nld.shared.u32 %r3, [%rd5];\nbar.sync 0;\nst.shared.u32 [%rd6], %r3;");
    run(64, "mov.u64 %rd5, memory;\ncvt.u32.u64 %r4, %rd5;\nsetp.eq.s32 %p1, %r1, 0;\n@%p1 cp.async.cg.shared.global [%r4], [%rd2], 16;\n"
            "cp.async.wait_all;\nbar.sync 0;\nld.shared.u32 %r5, [%rd5];");
    run(32, "add.s32 %r3, %r4, 1;\nsetp.lt.u32 %p1, %r1, 64;\n"
            "selp.b32 %r5, %r1, %r3, %p1;\n" AT_4 "st.global.u32 [%rd4], %r5;");      /* computed ahead, and not needed */
}

/* -- what it counts -------------------------------------------------------------------------------------------------------------- */

static void test_counts(void **state)
{
    static const struct { const char *body; int64_t sectors, sectors_least, passes, passes_least, products; } cases[] = {
        { AT_4 "st.global.u32 [%rd4], %r1;", 4, 4, 0, 0, 0 },
        { "mul.wide.u32 %rd3, %r1, 32;\nadd.s64 %rd4, %rd1, %rd3;\nst.global.u32 [%rd4], %r1;", 32, 4, 0, 0, 0 },
        { "ld.global.u32 %r3, [%rd2+4];", 1, 1, 0, 0, 0 },
        { "mul.wide.u32 %rd3, %r1, 16;\nadd.s64 %rd4, %rd2, %rd3;\nld.global.v4.u32 {%r3, %r4, %r5, %r6}, [%rd4];", 16, 16, 0, 0, 0 },
        { SHARED_AT_4 "st.shared.u32 [%rd6], %r1;", 0, 0, 1, 1, 0 },
        { "mov.u64 %rd5, memory;\nmul.wide.u32 %rd3, %r1, 8;\nadd.s64 %rd6, %rd5, %rd3;\nst.shared.u32 [%rd6], %r1;", 0, 0, 2, 1, 0 },
        { "mov.u64 %rd5, memory;\nmul.wide.u32 %rd3, %r1, 16;\nadd.s64 %rd6, %rd5, %rd3;\n"
          "st.shared.v4.u32 [%rd6], {%r1, %r1, %r1, %r1};", 0, 0, 4, 4, 0 },
        { "mov.u64 %rd5, memory;\nmul.wide.u32 %rd3, %r1, 32;\nadd.s64 %rd6, %rd5, %rd3;\n"
          "st.shared.v4.u32 [%rd6], {%r1, %r1, %r1, %r1};", 0, 0, 8, 4, 0 },
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        ptx_counts c = {0};
        char *why = run_with(&(launch){ .blocks = 1, .threads = 32, .shared_bytes = 1024, .counts = &c }, cases[i].body);
        if (why)
            fail_msg("%s", why);
        if (c.sectors != cases[i].sectors || c.sectors_least != cases[i].sectors_least || c.shared_passes != cases[i].passes || c.shared_least != cases[i].passes_least)
            fail_msg("%s\n"
                     "sectors %lld of at least %lld, passes %lld of at least %lld", cases[i].body, (long long)c.sectors, (long long)c.sectors_least, (long long)c.shared_passes,
                     (long long)c.shared_least);
        assert_int_equal(c.blocks, 1);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_instructions), cmocka_unit_test(test_lanes_part_and_meet),
                                        cmocka_unit_test(test_shuffles), cmocka_unit_test(test_matrices), cmocka_unit_test(test_calls),
                                        cmocka_unit_test(test_faults), cmocka_unit_test(test_order), cmocka_unit_test(test_counts) };
    return cmocka_run_group_tests_name("the machine that executes PTX", tests, NULL, NULL);
}
