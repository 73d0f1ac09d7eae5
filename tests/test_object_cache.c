/* Compiled code on disk: what is put is there at the next start; damage is a miss; the folder is its user's alone, and bounded.
 * One test alone: build/tests/test_object_cache 'cache_is*' */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <dirent.h>
#include <pthread.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "base/object_cache.h"
#include "tests/scratch.h"

static base_key key_of(const void *text, size_t size) { return base_cache_key("a compiler", text, size); }

static int count_files(const char *folder)
{
    DIR *dir = opendir(folder);
    int n = 0;
    assert_non_null(dir);
    for (struct dirent *e; (e = readdir(dir)); )
        n += e->d_name[0] != '.';
    closedir(dir);
    return n;
}

static void entry_path(const base_cache *cache, base_key key, char path[256])
{
    snprintf(path, 256, "%s/%016llx%016llx.o", base_cache_folder(cache), (unsigned long long)key.high, (unsigned long long)key.low);
}

static void cache_keeps_what_is_put(void **state)
{
    (void)state;
    base_bytes bytes;
    struct stat s;
    base_cache *cache = base_cache_open(in_scratch("cache"), 0);
    assert_non_null(cache);
    assert_int_equal(stat(base_cache_folder(cache), &s), 0);
    assert_int_equal(s.st_mode & 0777, 0700);

    base_key a = key_of("a", 1), b = key_of("b", 1);
    assert_false(base_cache_get(cache, a, &bytes));
    base_cache_put(cache, a, "code of a", 9);
    base_cache_put(cache, b, "", 0);
    assert_true(base_cache_get(cache, a, &bytes));
    assert_int_equal(bytes.size, 9);
    assert_memory_equal(bytes.at, "code of a", 9);
    base_bytes_free(&bytes);
    assert_true(base_cache_get(cache, b, &bytes));
    assert_int_equal(bytes.size, 0);
    base_bytes_free(&bytes);
    base_cache_close(cache);

    cache = base_cache_open(in_scratch("cache"), 0);               /* as a second start */
    assert_true(base_cache_get(cache, a, &bytes));
    base_bytes_free(&bytes);
    base_cache_close(cache);

    base_cache_put(NULL, a, "x", 1);                               /* no cache at all */
    assert_false(base_cache_get(NULL, a, &bytes));
    assert_string_equal(base_cache_folder(NULL), "");
    base_cache_close(NULL);
}

static void cache_takes_damage_for_a_miss(void **state)
{
    (void)state;
    enum { SIZE = 64 + 200 };
    base_bytes bytes;
    char path[256], content[200];
    size_t size;
    base_cache *cache = base_cache_open(in_scratch("damage"), 0);
    base_key key = key_of("k", 1), other = key_of("o", 1);
    for (size_t i = 0; i < sizeof content; i++)
        content[i] = (char)i;
    entry_path(cache, key, path);
    base_cache_put(cache, key, content, sizeof content);
    char *whole = read_file(path, &size);
    assert_int_equal(size, SIZE);

    catch_stderr();                                               /* a warning for each of 528 */
    for (int at = 0; at < SIZE; at++) {
        whole[at] ^= 16;
        write_file(path, whole, SIZE);
        whole[at] ^= 16;
        if (base_cache_get(cache, key, &bytes))
            fail_msg("byte %d of an entry is damaged: expected a miss", at);
        assert_int_equal(access(path, F_OK), -1);
        assert_null(bytes.at);

        write_file(path, whole, (size_t)at);                      /* cut short */
        assert_false(base_cache_get(cache, key, &bytes));
        assert_int_equal(access(path, F_OK), -1);
    }
    write_file(path, whole, SIZE);
    assert_true(base_cache_get(cache, key, &bytes));
    base_bytes_free(&bytes);

    char elsewhere[256];                                          /* whole, but another's */
    entry_path(cache, other, elsewhere);
    assert_int_equal(rename(path, elsewhere), 0);
    assert_false(base_cache_get(cache, other, &bytes));
    base_free(caught_stderr());
    base_free(whole);
    base_cache_close(cache);
}

static void cache_warns_of_damage(void **state)
{
    (void)state;
    base_bytes bytes;
    char path[256];
    base_cache *cache = base_cache_open(in_scratch("damage"), 0);
    base_key key = key_of("w", 1);
    entry_path(cache, key, path);
    write_file(path, "nothing", 7);

    catch_stderr();
    assert_false(base_cache_get(cache, key, &bytes));
    char *said = caught_stderr();
    assert_memory_equal(said, "[RAX] ", 6);
    assert_non_null(strstr(said, path));
    assert_non_null(strstr(said, "damaged"));
    base_free(said);
    base_cache_close(cache);
}

/* One line for the first, and one for how many they were. */
static void cache_warns_of_much_damage_briefly(void **state)
{
    (void)state;
    base_bytes bytes;
    char path[256];
    base_cache *cache = base_cache_open(in_scratch("much-damage"), 0);
    catch_stderr();
    for (int i = 0; i < 5; i++) {
        base_key key = key_of(&"wxyz!"[i], 1);
        entry_path(cache, key, path);
        write_file(path, "nothing", 7);
        assert_false(base_cache_get(cache, key, &bytes));
    }
    base_cache_close(cache);
    char *said = caught_stderr(), *second = strchr(said, '\n') + 1;
    assert_non_null(strstr(second, "5 files were damaged and removed in all\n"));
    assert_null(strchr(strchr(second, '\n') + 1, '\n'));
    base_free(said);
}

static void cache_refuses_folders_of_others(void **state)
{
    (void)state;
    char *folder = in_scratch("open"), objects[256];
    mkdir(folder, 0700);
    snprintf(objects, sizeof objects, "%s/objects", folder);
    mkdir(objects, 0700);
    chmod(objects, 0777);
    assert_null(base_cache_open(folder, 0));
    chmod(objects, 0720);
    assert_null(base_cache_open(folder, 0));
    chmod(objects, 0755);                                         /* others may look */
    base_cache *cache = base_cache_open(folder, 0);
    assert_non_null(cache);
    base_cache_close(cache);
    if (geteuid() == 0) {
        assert_int_equal(chown(objects, 12345, 12345), 0);
        assert_null(base_cache_open(folder, 0));
    }
    rmdir(objects);
    assert_int_equal(symlink(scratch, objects), 0);
    assert_null(base_cache_open(folder, 0));

    write_file(in_scratch("a-file"), "x", 1);                     /* a folder that cannot be */
    assert_null(base_cache_open(in_scratch("a-file"), 0));
}

static void cache_folder_by_environment(void **state)
{
    (void)state;
    static const char *const names[] = {"RAX_CACHE_DIR", "XDG_CACHE_HOME", "HOME"};
    static const char *const expected[] = {"by-rax/objects", "by-xdg/rax/objects", "by-home/.cache/rax/objects"};
    static const char *const values[] = {"by-rax", "by-xdg", "by-home"};
    char *kept[3];
    for (int i = 0; i < 3; i++) {
        kept[i] = getenv(names[i]) ? base_strdup(getenv(names[i])) : NULL;
        setenv(names[i], in_scratch(values[i]), 1);
    }
    for (int i = 0; i < 3; i++) {                                 /* each in turn, the ones before it unset */
        base_cache *cache = base_cache_open(NULL, 0);
        assert_non_null(cache);
        assert_string_equal(base_cache_folder(cache), in_scratch(expected[i]));
        base_cache_close(cache);
        unsetenv(names[i]);
    }
    assert_null(base_cache_open(NULL, 0));
    for (int i = 0; i < 3; i++) {
        if (kept[i])
            setenv(names[i], kept[i], 1);
        base_free(kept[i]);
    }
}

static void set_age(const char *path, long seconds)
{
    struct timespec t = { .tv_sec = time(NULL) - seconds };
    assert_int_equal(utimensat(AT_FDCWD, path, (struct timespec[]){ t, t }, 0), 0);
}

static void cache_is_bounded(void **state)
{
    (void)state;
    enum { ENTRY = 1000, LIMIT = 20 * ENTRY, ENTRIES = 18 };      /* 18 entries of 1064 bytes fit, and 19 do not */
    base_bytes bytes;
    char path[256], content[ENTRY] = "";
    base_key keys[ENTRIES + 1];
    base_cache *cache = base_cache_open(in_scratch("bounded"), LIMIT);
    for (int i = 0; i < ENTRIES; i++) {
        keys[i] = key_of(&i, sizeof i);
        base_cache_put(cache, keys[i], content, ENTRY);
        entry_path(cache, keys[i], path);
        set_age(path, 100000 - 100 * i);                          /* 0 is the oldest */
    }
    char left[256];
    snprintf(left, sizeof left, "%s/tmp-1-2-3", base_cache_folder(cache));
    write_file(left, "x", 1);
    set_age(left, 10000);
    assert_int_equal(count_files(base_cache_folder(cache)), ENTRIES + 1);
    assert_true(base_cache_get(cache, keys[0], &bytes));           /* and is used again */
    base_bytes_free(&bytes);

    int extra = ENTRIES;
    keys[ENTRIES] = key_of(&extra, sizeof extra);
    base_cache_put(cache, keys[ENTRIES], content, ENTRY);
    assert_int_equal(count_files(base_cache_folder(cache)), 16);   /* nine tenths; the leftover is gone too */
    for (int i = 0; i <= ENTRIES; i++) {
        bool found = base_cache_get(cache, keys[i], &bytes);
        if (found != (i == 0 || i > 3))
            fail_msg("entry %d: expected %s", i, found ? "a miss" : "a hit");
        base_bytes_free(&bytes);
    }
    char *large = base_alloc(LIMIT + 1);
    base_key key = key_of("large", 5);
    base_cache_put(cache, key, large, LIMIT + 1);                  /* never fits */
    assert_false(base_cache_get(cache, key, &bytes));
    base_free(large);
    base_cache_close(cache);
}

enum { WRITERS = 4, WRITTEN = 60 };
static void *write_and_read(void *argument)
{
    base_cache *cache = argument;
    size_t wrong = 0;
    for (int round = 0; round < 3; round++)
        for (uint64_t i = 0; i < WRITTEN; i++) {
            base_key key = { i, i * i };
            uint64_t content[40];
            base_bytes bytes;
            for (size_t k = 0; k < COUNT_OF(content); k++)
                content[k] = i * k;
            if (base_cache_get(cache, key, &bytes))
                wrong += bytes.size != sizeof content || memcmp(bytes.at, content, sizeof content) != 0;
            else
                base_cache_put(cache, key, content, sizeof content);
            base_bytes_free(&bytes);
        }
    return (void *)wrong;
}

static void cache_is_shared_by_threads(void **state)
{
    (void)state;
    pthread_t threads[WRITERS];
    base_cache *cache = base_cache_open(in_scratch("shared"), 40 * (64 + 320));     /* not all fit: some are trimmed meanwhile */
    for (int i = 0; i < WRITERS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, write_and_read, cache), 0);
    for (int i = 0; i < WRITERS; i++) {
        void *wrong;
        pthread_join(threads[i], &wrong);
        assert_null(wrong);
    }
    base_cache_close(cache);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cache_keeps_what_is_put),
        cmocka_unit_test(cache_takes_damage_for_a_miss),
        cmocka_unit_test(cache_warns_of_damage),
        cmocka_unit_test(cache_warns_of_much_damage_briefly),
        cmocka_unit_test(cache_refuses_folders_of_others),
        cmocka_unit_test(cache_folder_by_environment),
        cmocka_unit_test(cache_is_bounded),
        cmocka_unit_test(cache_is_shared_by_threads),
        cmocka_unit_test(nothing_leaks),
    };
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, make_scratch, remove_scratch);
}
