/* Memory, limits of the process, and errors: what every folder stands on. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/base.h"
#include "tests/scratch.h"

/* -- memory ------------------------------------------------------------------------------------------------------------ */

/* Pages that nobody has written to are nobody's for the kernel; together they may be more than there is. */
static void memory_is_promised_once(void **state)
{
    (void)state;
    void *large = base_try_alloc(8 << 20);
    bool maps = base_mapped_bytes() > 0;
    base_free(large);
    if (!maps)                                              /* with sanitizers all is touched when it is handed out: half the machine */
        skip();
    size_t available = base_memory_now().available_bytes;
    void *half = base_try_alloc(available / 2);
    assert_non_null(half);
    assert_true(base_memory_now().available_bytes < available / 4 * 3);
    assert_null(base_try_alloc(available / 4 * 3));
    base_free(half);
    assert_true(base_memory_now().available_bytes > available / 4 * 3);
    void *most = base_try_alloc(available / 4 * 3);         /* what is given back may be had again */
    assert_non_null(most);
    base_free(most);
    assert_null(base_try_alloc(PTRDIFF_MAX));
}

/* Blocks that come, grow and go in any order: each keeps what is written to it, and nothing is left over. */
static void mapped_blocks_come_and_go(void **state)
{
    (void)state;
    enum { BLOCKS = 200, TURNS = 3000 };
    char *block[BLOCKS] = {0};
    size_t size[BLOCKS] = {0}, mapped = base_mapped_bytes(), count = base_alloc_count();
    uint32_t dice = 1;
    for (int i = 0; i < TURNS; i++) {
        int at = (int)((dice = dice * 1664525 + 1013904223) >> 8) % BLOCKS;
        size_t bytes = (size_t)((dice = dice * 1664525 + 1013904223) >> 8) % (5 << 19) + 1;
        if (block[at])
            assert_true(block[at][0] == (char)at && block[at][size[at] - 1] == (char)at);
        if (block[at] && i % 3) {
            base_free(block[at]);
            block[at] = NULL;
            continue;
        }
        block[at] = block[at] ? base_try_grow(block[at], bytes) : base_try_alloc(bytes);
        assert_non_null(block[at]);
        assert_int_equal((uintptr_t)block[at] % 64, 0);
        block[at][0] = block[at][bytes - 1] = (char)at;
        size[at] = bytes;
    }
    for (int i = 0; i < BLOCKS; i++)
        base_free(block[i]);
    assert_int_equal(base_mapped_bytes(), mapped);
    assert_int_equal(base_alloc_count(), count);
}

/* What is in an array stays in it while it grows; what is new is zero. */
static void arrays_grow(void **state)
{
    (void)state;
    base_arena *arena = base_arena_new();
    int *own = NULL, *in_arena = NULL, cap = 0, arena_cap = 0;
    for (int n = 0; n < 1000; n++) {
        own = base_grown(own, n, &cap, sizeof *own);
        in_arena = base_arena_grown(arena, in_arena, n, &arena_cap, sizeof *in_arena);
        assert_true(cap > n && arena_cap > n);
        assert_true(own[n] == 0 && in_arena[n] == 0);
        own[n] = in_arena[n] = n + 1;
    }
    for (int n = 0; n < 1000; n++)
        assert_true(own[n] == n + 1 && in_arena[n] == n + 1);
    assert_true(cap < 2048);
    base_free(own);
    base_arena_free(arena);
}

/* -- limits ------------------------------------------------------------------------------------------------------------ */

static void plant(const char *root, const char *path, const char *text)
{
    char full[512];
    snprintf(full, sizeof full, "%s/%s", root, path);
    for (char *slash = strchr(full + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(full, 0700);
        *slash = '/';
    }
    write_file(full, text, strlen(text));
}

static const char meminfo[] = "MemTotal:       16000 kB\nMemFree:         9000 kB\nMemAvailable:   12000 kB\n";

static void limits_of_cgroup_v2(void **state)
{
    (void)state;
    const char *root = in_scratch("v2");
    plant(root, "proc/meminfo", meminfo);
    plant(root, "proc/self/cgroup", "0::/a/b\n");
    base_limits l = base_limits_read(root);
    assert_int_equal(l.cpus, 0);
    assert_int_equal(l.memory.total_bytes, 16000 << 10);
    assert_int_equal(l.memory.available_bytes, 12000 << 10);

    plant(root, "sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
    plant(root, "sys/fs/cgroup/a/cpu.max", "250000 100000\n");           /* a parent binds; two and a half are two */
    plant(root, "sys/fs/cgroup/a/b/memory.max", "8192000\n");
    plant(root, "sys/fs/cgroup/a/b/memory.current", "3000000\n");
    plant(root, "sys/fs/cgroup/a/b/memory.stat", "anon 2000000\ninactive_file 1000000\nactive_file 0\n");
    plant(root, "sys/fs/cgroup/memory.max", "max\n");
    l = base_limits_read(root);
    assert_int_equal(l.cpus, 2);
    assert_int_equal(l.memory.total_bytes, 8192000);
    assert_int_equal(l.memory.available_bytes, 8192000 - 2000000);

    plant(root, "sys/fs/cgroup/cpu.max", "20000 100000\n");               /* a fifth of a CPU is still one */
    assert_int_equal(base_limits_read(root).cpus, 1);
}

static void limits_of_cgroup_v1(void **state)
{
    (void)state;
    const char *root = in_scratch("v1");
    plant(root, "proc/meminfo", meminfo);
    plant(root, "proc/self/cgroup", "5:memory:/docker/1\n4:cpuacct,cpu:/docker/1\n1:name=systemd:/\n0::/\n");
    plant(root, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
    plant(root, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
    plant(root, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    plant(root, "sys/fs/cgroup/memory/memory.usage_in_bytes", "123456\n");
    base_limits l = base_limits_read(root);
    assert_int_equal(l.cpus, 0);
    assert_int_equal(l.memory.total_bytes, 16000 << 10);

    plant(root, "sys/fs/cgroup/cpu/docker/1/cpu.cfs_quota_us", "300000\n");
    plant(root, "sys/fs/cgroup/cpu/docker/1/cpu.cfs_period_us", "100000\n");
    plant(root, "sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes", "1000000\n");
    plant(root, "sys/fs/cgroup/memory/docker/1/memory.usage_in_bytes", "900000\n");
    plant(root, "sys/fs/cgroup/memory/docker/1/memory.stat", "inactive_file 1\ntotal_inactive_file 50000\n");
    l = base_limits_read(root);
    assert_int_equal(l.cpus, 3);
    assert_int_equal(l.memory.total_bytes, 1000000);
    assert_int_equal(l.memory.available_bytes, 150000);
}

/* -- errors ------------------------------------------------------------------------------------------------------------ */

/* What an argument quotes cannot break the line or drive the terminal. */
static void errors_are_one_line(void **state)
{
    (void)state;
    assert_false(base_fail(BASE_MISTAKE, "%s: a name", "a\nb\033[31m\x7f\xc3\xa9"));
    assert_string_equal(base_error(), "a?b?[31m?\xc3\xa9: a name");
    assert_int_equal(base_error_kind_of(), BASE_MISTAKE);
    assert_false(base_fail(BASE_FAILURE, "%s is wrong\n%s would fit", "x", "y\t"));
    assert_string_equal(base_error(), "x is wrong\ny? would fit");
    assert_int_equal(base_error_kind_of(), BASE_FAILURE);
    assert_false(base_fail_lines(BASE_MISTAKE, "%s", "x is wrong\n  y would\r fit"));
    assert_string_equal(base_error(), "x is wrong\n  y would? fit");
    base_fail(BASE_MISTAKE, "again: %s", base_error());
    assert_string_equal(base_error(), "again: x is wrong?  y would? fit");
    base_error_clear();
    assert_string_equal(base_error(), "");
}

static void a_switch_is_on_or_off(void **state)
{
    (void)state;
    unsetenv("RAX_A_SWITCH");
    assert_false(base_is_set("RAX_A_SWITCH"));
    setenv("RAX_A_SWITCH", "", 1);
    assert_false(base_is_set("RAX_A_SWITCH"));
    setenv("RAX_A_SWITCH", "0", 1);
    assert_false(base_is_set("RAX_A_SWITCH"));
    setenv("RAX_A_SWITCH", "1", 1);
    assert_true(base_is_set("RAX_A_SWITCH"));
    unsetenv("RAX_A_SWITCH");
}

/* -- all of it -------------------------------------------------------------------------------------------------------- */

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(memory_is_promised_once),
        cmocka_unit_test(mapped_blocks_come_and_go),
        cmocka_unit_test(arrays_grow),
        cmocka_unit_test(limits_of_cgroup_v2),
        cmocka_unit_test(limits_of_cgroup_v1),
        cmocka_unit_test(errors_are_one_line),
        cmocka_unit_test(a_switch_is_on_or_off),
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, make_scratch, remove_scratch);
}
