/* What this machine is, found at run time: the CPU's instruction set and caches, the CPUs and the memory that this process
 * may use.
 *
 * Nothing here calls LLVM: these figures are part of the key of cached objects, and a start that compiles nothing must not
 * load LLVM to learn where it is. LLVM's own name for the CPU is asked for in jit.c, on the first compilation.
 *
 * A container sees all CPUs and all memory of its host in the usual places; what it may use is in its cgroups, which come in
 * two versions, and with them in a tree: the limit is the least of all the levels above the process. */
#include "backend_cpu/runtime.h"

#include <errno.h>
#include <sched.h>
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

/* -- small files ------------------------------------------------------------------------------------------------------ */

/* The first bytes of a file as a string; "" where it cannot be read. */
static bool read_text(const char *path, char *text, size_t size)
{
    FILE *file = fopen(path, "r");
    size_t len = file ? fread(text, 1, size - 1, file) : 0;
    text[len] = '\0';
    if (file)
        fclose(file);
    return len > 0;
}

/* The number after name in "name 123\nother 4\n..." or "Name:   123 kB", in the file's unit; 0 where there is none. */
static uint64_t number_after(const char *text, const char *name)
{
    size_t len = strlen(name);
    for (const char *line = text; line; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, name, len) == 0)
            return strtoull(line + len, NULL, 10);
    }
    return 0;
}

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
    m->best_isa = best_isa();

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
    m->best_isa = CPU_GENERIC;
    memcpy(m->features, hwcaps, sizeof hwcaps);
    read_text("/sys/devices/system/cpu/cpu0/regs/identification/midr_el1", midr, sizeof midr);
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
        if (!read_text(path, level, sizeof level))
            break;
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/type", i);
        read_text(path, type, sizeof type);
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/size", i);
        read_text(path, size, sizeof size);
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

/* -- what the process may use ----------------------------------------------------------------------------------------- */

/* The path of this process in the hierarchy of a controller, by /proc/self/cgroup: lines "4:cpu,cpuacct:/path"; version 2
 * is the line "0::/path". controller is "" for version 2. False where there is no such line. */
static bool cgroup_path(const char *cgroups, const char *controller, char *path, size_t size)
{
    size_t want = strlen(controller);
    for (const char *line = cgroups; line && *line; line = strchr(line, '\n')) {
        line += *line == '\n';
        const char *names = strchr(line, ':'), *end = names ? strchr(names + 1, ':') : NULL;
        if (!end)
            return false;
        bool found = want == 0 && end == names + 1;
        for (const char *name = names + 1; want && name < end; ) {
            size_t len = strcspn(name, ",:");
            found |= len == want && strncmp(name, controller, len) == 0;
            name += len + 1;
        }
        if (found) {
            snprintf(path, size, "%.*s", (int)strcspn(end + 1, "\n"), end + 1);
            return true;
        }
    }
    return false;
}

/* One cgroup folder at a time, from the process's own to the root. In a container the path in /proc may be the host's, of
 * which only the root is mounted: folders that are not there are passed over. */
typedef struct { char base[256], path[512]; bool done; } cgroup_walk;

static bool walk_next(cgroup_walk *walk, char *folder, size_t size)
{
    if (walk->done)
        return false;
    char *slash = strrchr(walk->path, '/');
    bool at_root = !slash || slash[1] == '\0';
    snprintf(folder, size, "%s%s", walk->base, at_root ? "" : walk->path);
    if (at_root)
        walk->done = true;
    else
        slash[slash == walk->path] = '\0';                          /* "/a/b" -> "/a" -> "/" */
    return true;
}

static bool read_in(const char *folder, const char *name, char *text, size_t size)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return read_text(path, text, size);
}

/* CPUs by quota, "200000 100000" being two; 0 for "max" or -1. */
static int quota_cpus(const char *quota, const char *period)
{
    double q = strtod(quota, NULL), p = strtod(period, NULL);
    return q > 0 && p > 0 ? MAX((int)MIN(q / p, 1e6), 1) : 0;
}

static void least_cpus(int *cpus, int found)
{
    if (found && (!*cpus || found < *cpus))
        *cpus = found;
}

static void least_memory(cpu_memory *memory, uint64_t limit, uint64_t used, uint64_t reclaimable)
{
    if (limit == 0)
        return;
    used = used > reclaimable ? used - reclaimable : 0;
    uint64_t available = limit > used ? limit - used : 0;
    memory->total_bytes = MIN(memory->total_bytes, (size_t)limit);
    memory->available_bytes = MIN(memory->available_bytes, (size_t)available);
}

static void limits_v2(const char *root, const char *mount, const char *path, cpu_limits *limits)
{
    cgroup_walk walk = {0};
    char folder[800], text[64], used[32], stat[8192];
    snprintf(walk.base, sizeof walk.base, "%s%s", root, mount);
    snprintf(walk.path, sizeof walk.path, "%s", path);

    while (walk_next(&walk, folder, sizeof folder)) {
        if (read_in(folder, "cpu.max", text, sizeof text))
            least_cpus(&limits->cpus, quota_cpus(text, text + strcspn(text, " ")));
        if (read_in(folder, "memory.max", text, sizeof text) && text[0] != 'm') {
            read_in(folder, "memory.current", used, sizeof used);
            read_in(folder, "memory.stat", stat, sizeof stat);
            least_memory(&limits->memory, strtoull(text, NULL, 10), strtoull(used, NULL, 10),
                         number_after(stat, "inactive_file "));
        }
    }
}

static void limits_v1(const char *root, const char *cpu_path, const char *memory_path, cpu_limits *limits)
{
    cgroup_walk cpu = {0}, memory = {0};
    char folder[800], text[64], other[64], stat[8192];
    snprintf(cpu.base, sizeof cpu.base, "%s/sys/fs/cgroup/cpu", root);      /* a link to "cpu,cpuacct" where they are one */
    snprintf(cpu.path, sizeof cpu.path, "%s", cpu_path);
    snprintf(memory.base, sizeof memory.base, "%s/sys/fs/cgroup/memory", root);
    snprintf(memory.path, sizeof memory.path, "%s", memory_path);

    while (walk_next(&cpu, folder, sizeof folder))
        if (read_in(folder, "cpu.cfs_quota_us", text, sizeof text) &&
            read_in(folder, "cpu.cfs_period_us", other, sizeof other))
            least_cpus(&limits->cpus, quota_cpus(text, other));
    while (walk_next(&memory, folder, sizeof folder))
        if (read_in(folder, "memory.limit_in_bytes", text, sizeof text)) {  /* no limit is a number near 2^63 */
            read_in(folder, "memory.usage_in_bytes", other, sizeof other);
            read_in(folder, "memory.stat", stat, sizeof stat);
            least_memory(&limits->memory, strtoull(text, NULL, 10), strtoull(other, NULL, 10),
                         number_after(stat, "total_inactive_file "));
        }
}

cpu_limits cpu_limits_read(const char *root)
{
    cpu_limits limits = {0};
    char path[512], text[8192], cpu[512], memory[512];

    snprintf(path, sizeof path, "%s/proc/meminfo", root);
    read_text(path, text, sizeof text);
    limits.memory.total_bytes = number_after(text, "MemTotal:") << 10;
    limits.memory.available_bytes = number_after(text, "MemAvailable:") << 10;
    if (!limits.memory.total_bytes)
        limits.memory.total_bytes = (size_t)MAX(sysconf(_SC_PHYS_PAGES), 0L) * (size_t)sysconf(_SC_PAGESIZE);
    if (!limits.memory.available_bytes)
        limits.memory.available_bytes = limits.memory.total_bytes;

    snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    read_text(path, text, sizeof text);
    if (cgroup_path(text, "", path, sizeof path)) {
        limits_v2(root, "/sys/fs/cgroup", path, &limits);
        limits_v2(root, "/sys/fs/cgroup/unified", path, &limits);           /* beside version 1 */
    }
    bool has_cpu = cgroup_path(text, "cpu", cpu, sizeof cpu);
    bool has_memory = cgroup_path(text, "memory", memory, sizeof memory);
    if (has_cpu || has_memory)
        limits_v1(root, has_cpu ? cpu : "", has_memory ? memory : "", &limits);
    return limits;
}

cpu_memory cpu_memory_now(void) { return cpu_limits_read("").memory; }

int cpu_usable_cpus(void)
{
    int cpus = 0;
    for (int room = 1024; room <= 1 << 20; room *= 4) {                     /* EINVAL: the kernel's mask is larger */
        cpu_set_t *set = CPU_ALLOC(room);
        if (!set)
            break;
        int status = sched_getaffinity(0, CPU_ALLOC_SIZE(room), set), reason = errno;
        if (status == 0)
            cpus = CPU_COUNT_S(CPU_ALLOC_SIZE(room), set);
        CPU_FREE(set);
        if (status == 0 || reason != EINVAL)
            break;
    }
    if (cpus <= 0)
        cpus = (int)MAX(sysconf(_SC_NPROCESSORS_ONLN), 1L);
    int quota = cpu_limits_read("").cpus;
    return quota ? MIN(cpus, quota) : cpus;
}

/* -- all of it -------------------------------------------------------------------------------------------------------- */

/* LLVM's choice of instructions follows vendor, family, model and stepping; the backend's choice of blocks the caches. */
static void set_digest(cpu_machine *m)
{
    base_text text = {0};
    base_text_add(&text, "%s/%d/%d/%d %s of %s l1d=%zu l2=%zu l3=%zu features", m->vendor[0] ? m->vendor : m->name,
                  m->family, m->model, m->stepping, cpu_isa_name(m->isa), cpu_isa_name(m->best_isa), m->l1d_bytes,
                  m->l2_bytes, m->l3_bytes);
    for (size_t i = 0; i < COUNT_OF(m->features); i++)
        base_text_add(&text, " %08x", m->features[i]);
    XXH128_hash_t hash = XXH3_128bits(text.at, text.len);
    snprintf(m->digest, sizeof m->digest, "%016llx%016llx", (unsigned long long)hash.high64, (unsigned long long)hash.low64);
    base_text_free(&text);
}

bool cpu_machine_set_isa(cpu_machine *m, cpu_isa isa)
{
    if (isa > m->best_isa)
        return base_fail(BASE_MISTAKE, "RAX_ISA: this CPU (%s) has %s at most, not %s", m->name, cpu_isa_name(m->best_isa),
                         cpu_isa_name(isa));
    m->isa = isa;
    m->f32_lanes = isa_f32_lanes[isa];
    set_digest(m);
    return true;
}

bool cpu_machine_detect(cpu_machine *m, const char *isa)
{
    memset(m, 0, sizeof *m);
    detect_cpu(m);
    detect_caches(m);
    m->cpus = cpu_usable_cpus();

    if (!isa)
        isa = getenv("RAX_ISA");
    if (!isa || !*isa)
        return cpu_machine_set_isa(m, m->best_isa);
    for (int i = 0; i < CPU_ISA_COUNT; i++)
        if (strcmp(isa, isa_names[i]) == 0)
            return cpu_machine_set_isa(m, (cpu_isa)i);
    return base_fail(BASE_MISTAKE, "RAX_ISA: expected generic, avx2, avx512, avx512bf16 or amx, got \"%s\"", isa);
}
