/* CPUs and memory that this process may use, found at run time.
 *
 * A container sees all CPUs and all memory of its host in the usual places; what it may use is in its cgroups, which come in
 * two versions, and with them in a tree: the limit is the least of all the levels above the process.
 *
 * What the kernel calls available it counts by pages in use, and a fresh block has none: a process may be given twice what there is,
 * and is killed when it writes to it. So what was handed out and not yet touched is taken off. */
#include "base/base.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* -- small files ------------------------------------------------------------------------------------------------------ */

/* The first bytes of a file as a string; "" where it cannot be read. */
bool base_read_text(const char *path, char *text, size_t size)
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
    return base_read_text(path, text, size);
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

static void least_memory(base_memory *memory, uint64_t limit, uint64_t used, uint64_t reclaimable)
{
    if (limit == 0)
        return;
    used = used > reclaimable ? used - reclaimable : 0;
    uint64_t available = limit > used ? limit - used : 0;
    memory->total_bytes = MIN(memory->total_bytes, (size_t)limit);
    memory->available_bytes = MIN(memory->available_bytes, (size_t)available);
}

static void limits_v2(const char *root, const char *mount, const char *path, base_limits *limits)
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

static void limits_v1(const char *root, const char *cpu_path, const char *memory_path, base_limits *limits)
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

base_limits base_limits_read(const char *root)
{
    base_limits limits = {0};
    char path[512], text[8192], cpu[512], memory[512];

    snprintf(path, sizeof path, "%s/proc/meminfo", root);
    base_read_text(path, text, sizeof text);
    limits.memory.total_bytes = number_after(text, "MemTotal:") << 10;
    limits.memory.available_bytes = number_after(text, "MemAvailable:") << 10;
    if (!limits.memory.total_bytes)
        limits.memory.total_bytes = (size_t)MAX(sysconf(_SC_PHYS_PAGES), 0L) * (size_t)sysconf(_SC_PAGESIZE);
    if (!limits.memory.available_bytes)
        limits.memory.available_bytes = limits.memory.total_bytes;

    snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    base_read_text(path, text, sizeof text);
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

int base_usable_cpus(void)
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
    int quota = base_limits_read("").cpus;
    return quota ? MIN(cpus, quota) : cpus;
}

/* Pages of the process that are its own: what it has touched of its memory. 0 where the kernel does not tell. */
static size_t own_bytes(void)
{
    char text[128], *at = text;
    base_read_text("/proc/self/statm", text, sizeof text);        /* pages: all, resident, of which shared with files, ... */
    strtoull(at, &at, 10);
    size_t resident = strtoull(at, &at, 10), shared = strtoull(at, &at, 10);
    return resident > shared ? (resident - shared) * (size_t)sysconf(_SC_PAGESIZE) : 0;
}

base_memory base_memory_now(void)
{
    base_memory memory = base_limits_read("").memory;
    size_t mapped = base_mapped_bytes(), own = own_bytes();
    size_t promised = own && mapped > own ? mapped - own : 0;
    memory.available_bytes -= MIN(memory.available_bytes, promised);
    return memory;
}
