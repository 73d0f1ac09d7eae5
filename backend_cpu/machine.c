/* What this machine is, found at run time: the CPU's instruction set and caches, and the CPUs that this process may use.
 *
 * Nothing here calls LLVM: these figures are part of the key of cached objects, and a start that compiles nothing must not
 * load LLVM to learn where it is. LLVM's own name for the CPU is asked for in jit.c, on the first compilation.
 */
#include "backend_cpu/runtime.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <xxhash.h>

#if defined(__x86_64__)
#include <cpuid.h>
#else
#include <sys/auxv.h>
#endif

static const char *const isa_names[CPU_ISA_COUNT] = {"generic", "avx2", "avx512", "avx512bf16", "amx"};
static const int isa_f32_lanes[CPU_ISA_COUNT] = {4, 8, 16, 16, 16};

const char *cpu_isa_name(cpu_isa isa) { return isa_names[isa]; }

/* -- the CPU ---------------------------------------------------------------------------------------------------------- */

#if defined(__x86_64__)

typedef struct { unsigned a, b, c, d; } registers;

static registers cpuid(unsigned leaf, unsigned subleaf)
{
    registers r = {0};
    __get_cpuid_count(leaf, subleaf, &r.a, &r.b, &r.c, &r.d);     /* all 0 where the CPU has no such leaf */
    return r;
}

static bool has(unsigned word, int bit) { return word >> bit & 1; }

/* The registers that the operating system saves on a switch: a CPU's AVX is of no use under a system that loses it. */
static unsigned saved_state(void)
{
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

/* Tiles of 16 rows of 64 bytes that multiply bf16, and the system's permission to use them: their 8 KB of state are kept only for
 * processes that ask (Linux: Documentation/arch/x86/xstate.rst), and threads that are begun later have them too. */
static bool may_use_tiles(unsigned saved)
{
    enum { TILE_CONFIGURATION_AND_DATA = 3 << 17, REQUEST = 0x1023, TILE_DATA = 18 };
    registers seven = cpuid(7, 0), palette = cpuid(0x1d, 1);
    bool tiles = has(seven.d, 24) && has(seven.d, 22) && palette.b >> 16 >= 8 && (palette.b & 0xffff) == 64 && (palette.c & 0xffff) == 16;
    if (!tiles || (saved & TILE_CONFIGURATION_AND_DATA) != TILE_CONFIGURATION_AND_DATA)
        return false;
#if defined(__linux__) && defined(SYS_arch_prctl)
    int reason = errno;
    bool permitted = syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
    errno = reason;
    return permitted;
#else
    return false;
#endif
}

static cpu_isa best_isa(void)
{
    enum { SSE_AND_AVX = 0x6, AND_OPMASK_AND_ZMM = 0xe6 };
    registers one = cpuid(1, 0), seven = cpuid(7, 0), extended = cpuid(0x80000001, 0);

    if (!has(one.c, 27))                                          /* OSXSAVE: xgetbv may be asked */
        return CPU_GENERIC;
    unsigned saved = saved_state();
    bool fma = has(one.c, 12), movbe = has(one.c, 22), avx = has(one.c, 28), f16c = has(one.c, 29);
    bool bmi1 = has(seven.b, 3), avx2 = has(seven.b, 5), bmi2 = has(seven.b, 8), lzcnt = has(extended.c, 5);
    if ((saved & SSE_AND_AVX) != SSE_AND_AVX || !(avx && avx2 && fma && f16c && movbe && bmi1 && bmi2 && lzcnt))
        return CPU_GENERIC;

    bool f = has(seven.b, 16), dq = has(seven.b, 17), cd = has(seven.b, 28), bw = has(seven.b, 30), vl = has(seven.b, 31);
    if ((saved & AND_OPMASK_AND_ZMM) != AND_OPMASK_AND_ZMM || !(f && dq && cd && bw && vl))
        return CPU_AVX2;
    if (!has(cpuid(7, 1).a, 5))
        return CPU_AVX512;
    return may_use_tiles(saved) ? CPU_AMX : CPU_AVX512BF16;
}

static void detect_cpu(cpu_machine *m)
{
    registers zero = cpuid(0, 0), one = cpuid(1, 0);
    memcpy(m->vendor, &zero.b, 4);
    memcpy(m->vendor + 4, &zero.d, 4);
    memcpy(m->vendor + 8, &zero.c, 4);

    m->family = one.a >> 8 & 15;
    if (m->family == 15)
        m->family += one.a >> 20 & 255;
    m->model = (one.a >> 4 & 15) | (one.a >> 12 & 0xf0);
    m->stepping = one.a & 15;
    m->own_isa = best_isa();

    registers seven = cpuid(7, 0), extended = cpuid(0x80000001, 0);
    const uint32_t words[8] = {one.c, one.d, seven.b, seven.c, seven.d, cpuid(7, 1).a, extended.c, extended.d};
    memcpy(m->features, words, sizeof words);

    char brand[49] = "";
    for (unsigned i = 0; i < 3; i++) {
        registers r = cpuid(0x80000002 + i, 0);
        memcpy(brand + 16 * i, &r, 16);
    }
    char *start = brand + strspn(brand, " ");
    for (size_t len = strlen(start); len > 0 && start[len - 1] == ' '; len--)
        start[len - 1] = '\0';
    snprintf(m->name, sizeof m->name, "%s", *start ? start : "unknown");
}

#else

static void detect_cpu(cpu_machine *m)
{
    const uint64_t hwcaps[3] = {getauxval(AT_HWCAP), getauxval(AT_HWCAP2)};
    char midr[32] = "";                                           /* which core it is, on AArch64 */
    m->own_isa = CPU_GENERIC;
    memcpy(m->features, hwcaps, sizeof hwcaps);
    base_read_text("/sys/devices/system/cpu/cpu0/regs/identification/midr_el1", midr, sizeof midr);
    midr[strcspn(midr, "\n")] = '\0';
    snprintf(m->name, sizeof m->name, "%s", midr[0] ? midr : "unknown");
}

#endif

/* -- caches ----------------------------------------------------------------------------------------------------------- */

/* "48K", "1024K", "32M" */
static size_t parse_size(const char *text)
{
    char *unit;
    size_t size = strtoull(text, &unit, 10);
    return *unit == 'K' ? size << 10 : *unit == 'M' ? size << 20 : *unit == 'G' ? size << 30 : size;
}

/* The kernel knows caches best: the C library's sysconf has been wrong about the L3 of AMD CPUs. The last resort is a small
 * machine of the day. */
static void detect_caches(cpu_machine *m)
{
    for (int i = 0; i < 8; i++) {
        char path[96], level[8], type[16], size[16];
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/level", i);
        if (!base_read_text(path, level, sizeof level))
            break;
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/type", i);
        base_read_text(path, type, sizeof type);
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/size", i);
        base_read_text(path, size, sizeof size);
        if (type[0] == 'I')
            continue;
        size_t *slot = level[0] == '1' ? &m->l1d_bytes : level[0] == '2' ? &m->l2_bytes : level[0] == '3' ? &m->l3_bytes : NULL;
        if (slot)
            *slot = parse_size(size);
    }
#ifdef _SC_LEVEL1_DCACHE_SIZE
    if (!m->l1d_bytes)
        m->l1d_bytes = (size_t)MAX(sysconf(_SC_LEVEL1_DCACHE_SIZE), 0L);
    if (!m->l2_bytes)
        m->l2_bytes = (size_t)MAX(sysconf(_SC_LEVEL2_CACHE_SIZE), 0L);
    if (!m->l3_bytes)
        m->l3_bytes = (size_t)MAX(sysconf(_SC_LEVEL3_CACHE_SIZE), 0L);
#endif
    if (!m->l1d_bytes)
        m->l1d_bytes = 32 << 10;
    if (!m->l2_bytes)
        m->l2_bytes = 512 << 10;
    if (!m->l3_bytes)
        m->l3_bytes = MAX(m->l2_bytes, (size_t)4 << 20);
}

/* -- all of it -------------------------------------------------------------------------------------------------------- */

/* LLVM's choice of instructions follows vendor, family, model and stepping; the backend's choice of blocks the caches. */
static void set_digest(cpu_machine *m)
{
    base_text text = {0};
    base_text_add(&text, "%s/%d/%d/%d %s of %s l1d=%zu l2=%zu l3=%zu features", m->vendor[0] ? m->vendor : m->name,
                  m->family, m->model, m->stepping, cpu_isa_name(m->isa), cpu_isa_name(m->own_isa), m->l1d_bytes,
                  m->l2_bytes, m->l3_bytes);
    for (size_t i = 0; i < COUNT_OF(m->features); i++)
        base_text_add(&text, " %08x", m->features[i]);
    XXH128_hash_t hash = XXH3_128bits(text.at, text.len);
    snprintf(m->digest, sizeof m->digest, "%016llx%016llx", (unsigned long long)hash.high64, (unsigned long long)hash.low64);
    base_text_free(&text);
}

/* origin: what asks for it, for the message */
static bool set_isa(cpu_machine *m, cpu_isa isa, const char *origin)
{
    if (isa > m->best_isa)
        return base_fail(BASE_MISTAKE, "%s: this CPU (%s) has %s at most, not %s", origin, m->name, cpu_isa_name(m->best_isa),
                         cpu_isa_name(isa));
    m->isa = isa;
    m->f32_lanes = isa_f32_lanes[isa];
    set_digest(m);
    return true;
}

bool cpu_machine_set_isa(cpu_machine *m, cpu_isa isa) { return set_isa(m, isa, "isa"); }

/* CPU_ISA_COUNT: there is none of this name. */
static cpu_isa isa_of(const char *name)
{
    int i = 0;
    while (i < CPU_ISA_COUNT && strcmp(name, isa_names[i]) != 0)
        i++;
    return (cpu_isa)i;
}

bool cpu_machine_detect(cpu_machine *m, const char *isa)
{
    memset(m, 0, sizeof *m);
    detect_cpu(m);
    detect_caches(m);
    m->cpus = base_usable_cpus();

    const char *emulated = getenv("RAX_EMULATED_ISA");
    m->best_isa = emulated && isa_of(emulated) < CPU_ISA_COUNT ? MAX(m->own_isa, isa_of(emulated)) : m->own_isa;

    const char *origin = isa ? "isa" : "RAX_ISA";
    if (!isa)
        isa = getenv("RAX_ISA");
    if (!isa || !*isa)
        return cpu_machine_set_isa(m, m->own_isa);
    if (isa_of(isa) < CPU_ISA_COUNT)
        return set_isa(m, isa_of(isa), origin);
    return base_fail(BASE_MISTAKE, "%s: expected generic, avx2, avx512, avx512bf16 or amx, got \"%s\"", origin, isa);
}
